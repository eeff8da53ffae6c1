"""MobileOne's block (Vasu et al., "An Improved One millisecond Mobile Backbone", arXiv 2206.04040, section 3.2)."""

from collections import OrderedDict
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_train.blocks.merge_rule import merge_pays
from pfld_edge_train.blocks.merged_branches import MergedBlock, merged_forward
from pfld_edge_train.blocks.patch_geometry import PatchGeometry

__all__ = ["MobileOneBlock"]


class MobileOneBlock(nn.Module):
    """Parallel linear branches in training, one convolution at inference, then ReLU.

    The branches, each ending in BatchNorm, are summed: ``rbr_conv`` (k x k convolutions), ``rbr_scale`` (a 1x1
    convolution, where k > 1 or asked for) and ``rbr_skip`` (BatchNorm alone, where input and output have one shape).
    A block whose branches were merged holds ``reparam_conv`` in their place. The attribute names are those of the
    public checkpoints.

    In training the branches are merged in every step where that is faster, with the same results; see
    `pfld_edge_train.blocks.merged_branches`.

    Attributes:
        training_form: ``auto``, ``merged`` or ``branches``.
        statistics_group: Processes whose batches are one batch for BatchNorm; None for this one's alone.
    """

    training_form: Literal["auto", "merged", "branches"] = "auto"
    statistics_group: dist.ProcessGroup | None = None

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
        if self.training and self._merges():
            return self._merged(x)
        out = self._linear_part(x)
        return out if self.linear else torch.relu(out)

    def _linear_part(self, x: Tensor) -> Tensor:
        out: Tensor
        if self.reparam_conv is not None:
            out = self.reparam_conv(x)
            return out
        terms = [branch(x) for branch in (*(self.rbr_conv or ()), self.rbr_skip) if branch is not None]
        if self.rbr_scale is not None:
            terms.append(self._scaled(x))
        out = terms[0]
        for term in terms[1:]:
            out = out + term
        return out

    def _scaled(self, x: Tensor) -> Tensor:
        """Run the scale branch.

        A 1x1 convolution skips places instead of stepping over them: torch 2.13's kernel for a stride of 2 and three
        channels, channels last, writes out of bounds when it computes the weights' gradient on a CPU.
        """
        conv = _conv_of(self)
        weight, norm = _parts(self.rbr_scale or nn.Module())
        step = conv.stride[0]
        out: Tensor = norm(F.conv2d(x[:, :, ::step, ::step], weight, groups=conv.groups))
        return out

    def _merges(self) -> bool:
        """Say whether this step merges the branches: not where a BatchNorm is frozen, or of another kind."""
        if self.rbr_conv is None or self.training_form == "branches":
            return False
        norms = self._norms()
        if not all(norm.training and isinstance(norm, nn.BatchNorm2d) for norm in norms):
            return False
        conv = _conv_of(self)
        patch = PatchGeometry(conv.kernel_size[0], conv.stride[0], conv.groups)
        return self.training_form == "merged" or merge_pays(conv.in_channels, conv.out_channels, patch, len(norms))

    def _merged(self, x: Tensor) -> Tensor:
        conv = _conv_of(self)
        kernels = [_parts(branch)[0] for branch in (*(self.rbr_conv or ()), self.rbr_scale) if branch is not None]
        geometry = PatchGeometry(conv.kernel_size[0], conv.stride[0], conv.groups)
        return merged_forward(x, MergedBlock(geometry, self._norms(), self.linear, self.statistics_group), kernels)

    def _norms(self) -> list[nn.BatchNorm2d]:
        """The k x k branches' BatchNorms, the scale branch's, the skip branch's."""
        sequences = [*(self.rbr_conv or ()), self.rbr_scale]
        norms = [_parts(branch)[1] for branch in sequences if branch is not None]
        return norms if self.rbr_skip is None else [*norms, self.rbr_skip]


def _conv_of(block: MobileOneBlock) -> nn.Conv2d:
    if block.rbr_conv is None:
        raise RuntimeError("the block's branches are merged for good already")
    conv = block.rbr_conv[0].get_submodule("conv")
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"expected a convolution in the branch, found {type(conv).__name__}")
    return conv


def _parts(branch: nn.Module) -> tuple[Tensor, nn.BatchNorm2d]:
    norm = branch.get_submodule("bn")
    if not isinstance(norm, nn.BatchNorm2d):
        raise TypeError(f"expected BatchNorm in the branch, found {type(norm).__name__}")
    return branch.get_submodule("conv").get_parameter("weight"), norm


def _conv_bn(
    in_channels: int, out_channels: int, stride: int, groups: int, kernel_size: int, padding: int
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))
