"""MobileOne's block (Vasu et al., "An Improved One millisecond Mobile Backbone", arXiv 2206.04040, section 3.2)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

__all__ = ["MobileOneBlock"]


class MobileOneBlock(nn.Module):
    """Parallel linear branches in training, one convolution at inference, then ReLU.

    The branches, each ending in BatchNorm, are summed: ``rbr_conv`` (k x k convolutions), ``rbr_scale`` (a 1x1
    convolution, where k > 1 or asked for) and ``rbr_skip`` (BatchNorm alone, where input and output have one shape).
    A block whose branches were merged holds ``reparam_conv`` in their place. The attribute names are those of the
    public checkpoints.
    """

    rbr_conv: nn.ModuleList | None
    rbr_scale: nn.Sequential | None
    rbr_skip: nn.BatchNorm2d | None
    reparam_conv: nn.Conv2d | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        conv_branches: int = 1,
        side_branches: bool = True,
        pointwise_scale: bool = False,
        linear: bool = False,
        fused: bool = False,
    ) -> None:
        """Build the block with padding ``kernel_size // 2``.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            kernel_size: Odd side of the kernel.
            stride: Step of the kernel.
            groups: ``in_channels`` for a depthwise block.
            conv_branches: Number of k x k branches, at least 1.
            side_branches: Whether the scale and skip branches exist.
            pointwise_scale: Whether a 1x1 block has a scale branch too.
            linear: Leave out the ReLU.
            fused: Build the inference form: one convolution with bias.
        """
        super().__init__()
        self.linear = linear
        self.rbr_conv = self.rbr_scale = self.rbr_skip = self.reparam_conv = None
        padding = kernel_size // 2
        if fused:
            self.reparam_conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups)
            return
        shape = (in_channels, out_channels, stride, groups)
        self.rbr_conv = nn.ModuleList(_conv_bn(*shape, kernel_size, padding) for _ in range(conv_branches))
        if side_branches and (kernel_size > 1 or pointwise_scale):
            self.rbr_scale = _conv_bn(*shape, 1, 0)
        if side_branches and stride == 1 and in_channels == out_channels:
            self.rbr_skip = nn.BatchNorm2d(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H/s, W/s)``."""
        out = self._linear_part(x)
        return out if self.linear else torch.relu(out)

    def _linear_part(self, x: Tensor) -> Tensor:
        out: Tensor
        if self.reparam_conv is not None:
            out = self.reparam_conv(x)
            return out
        branches = [*(self.rbr_conv or ()), self.rbr_scale, self.rbr_skip]
        terms = [branch(x) for branch in branches if branch is not None]
        out = terms[0]
        for term in terms[1:]:
            out = out + term
        return out


def _conv_bn(
    in_channels: int, out_channels: int, stride: int, groups: int, kernel_size: int, padding: int
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))
