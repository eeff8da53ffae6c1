"""MobileOne's block, and Ghost modules built of it.

The block follows Vasu et al., "An Improved One millisecond Mobile Backbone", arXiv 2206.04040, section 3.2; Ghost
modules follow arXiv 1911.11907, section 3.1, joined as in the public PFLD-GhostOne networks.
"""

import operator
from collections import OrderedDict
from functools import partial, reduce
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_train.blocks.merged_branches import merge_pays, merged_branches
from pfld_edge_train.blocks.patch_moments import PatchGeometry


class MobileOneBlock(nn.Module):
    """Parallel linear branches in training, one convolution at inference, then ReLU.

    The branches, each with BatchNorm, are summed: ``rbr_conv`` (k x k convolutions), ``rbr_scale`` (a 1x1 convolution,
    where k > 1 or asked for) and ``rbr_skip`` (BatchNorm alone, where input and output have one shape). After
    re-parameterization ``reparam_conv`` replaces them. The attribute names are those of the public checkpoints.

    In training the branches are merged in every step where that is faster, with the same results; see
    `pfld_edge_train.blocks.merged_branches`. The batches of the processes of `statistics_group` are one for BatchNorm.
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
        bound: float | None = None,
    ) -> None:
        """Build the block with an odd `kernel_size` and padding ``kernel_size // 2``.

        `groups` is `in_channels` for a depthwise block, `conv_branches` the number of k x k branches. `side_branches`:
        scale and skip branches exist; `pointwise_scale`: in a 1x1 block too. `linear`: no ReLU. `fused`: the inference
        form, one convolution with bias. `bound`: largest activation, as of ReLU6; None for a plain ReLU.
        """
        super().__init__()
        self.linear, self.bound = linear, bound
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
        merged = self._merged(x) if self.training and self.training_form != "branches" else None
        if merged is not None:
            return self._activated(merged)
        return self._activated(self.reparam_conv(x) if self.reparam_conv is not None else self._sum_of_branches(x))

    def _activated(self, out: Tensor) -> Tensor:
        if self.linear:
            return out
        if self.bound is None:
            return F.relu(out, inplace=True)
        # In place where a batch's memory counts; torch's exporter takes a second for this network's hardtanh_.
        return F.hardtanh(out, 0.0, self.bound, inplace=self.training)

    def _sum_of_branches(self, x: Tensor) -> Tensor:
        terms = [branch(x) for branch in (*(self.rbr_conv or ()), self.rbr_skip) if branch is not None]
        if self.rbr_scale is not None:
            terms.append(_scaled(x, self.rbr_scale))
        out: Tensor = reduce(operator.add, terms)
        return out

    def _merged(self, x: Tensor) -> Tensor | None:
        """The sum of the branches, merged; None where that is slower, or a BatchNorm is frozen or of another kind."""
        if self.rbr_conv is None:
            return None
        sequences = [branch for branch in (*self.rbr_conv, self.rbr_scale) if branch is not None]
        convs: list[nn.Conv2d] = [branch[0] for branch in sequences]
        norms: list[nn.BatchNorm2d] = [branch[1] for branch in sequences]
        norms += [] if self.rbr_skip is None else [self.rbr_skip]
        if not all(norm.training and isinstance(norm, nn.BatchNorm2d) for norm in norms):
            return None
        conv = convs[0]
        geometry = PatchGeometry(conv.kernel_size[0], conv.stride[0], conv.groups)
        pays = x.is_cpu and merge_pays(conv.in_channels, conv.out_channels, geometry, len(norms))
        if self.training_form != "merged" and not pays:
            return None
        return merged_branches(x, geometry, [conv.weight for conv in convs], norms, self.statistics_group)


def _scaled(x: Tensor, branch: nn.Sequential) -> Tensor:
    """Run a scale branch.

    A 1x1 convolution skips places instead of stepping over them: torch 2.13's kernel for a stride of 2 and three
    channels, channels last, writes out of bounds when it computes the weights' gradient on a CPU.
    """
    conv, norm = branch
    assert isinstance(conv, nn.Conv2d)  # noqa: S101 - tells the type checker
    step = conv.stride[0]
    out: Tensor = norm(F.conv2d(x[:, :, ::step, ::step], conv.weight, groups=conv.groups))
    return out


def _conv_bn(
    in_channels: int, out_channels: int, stride: int, groups: int, kernel_size: int, padding: int
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))


class GhostOneModule(nn.Module):
    """Half of the channels by a 1x1 block, the other half by a depthwise 3x3 block of the first half."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        conv_branches: int,
        linear: bool = False,
        fused: bool = False,
        pointwise_scale: bool = False,
    ) -> None:
        """Build the two blocks; the options are those of `MobileOneBlock`, the number of output channels is even."""
        super().__init__()
        if out_channels % 2:
            raise ValueError(f"a GhostOne module needs an even number of output channels, not {out_channels}")
        half = out_channels // 2
        block = partial(MobileOneBlock, conv_branches=conv_branches, linear=linear, fused=fused)
        self.primary_conv = block(in_channels, half, 1, pointwise_scale=pointwise_scale)
        self.cheap_operation = block(half, half, 3, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H, W)``."""
        primary = self.primary_conv(x)
        return torch.cat([primary, self.cheap_operation(primary)], dim=1)


class GhostOneBottleneck(nn.Module):
    """GhostOne module up, linear depthwise block where the stride is 2, linear GhostOne module down."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        stride: int,
        *,
        conv_branches: int,
        fused: bool = False,
        pointwise_scale: bool = False,
    ) -> None:
        """Build the block; there is no shortcut."""
        super().__init__()
        module = partial(GhostOneModule, conv_branches=conv_branches, fused=fused, pointwise_scale=pointwise_scale)
        down: nn.Module = nn.Sequential()
        if stride == 2:
            depthwise = partial(MobileOneBlock, groups=hidden_channels, conv_branches=conv_branches, fused=fused)
            down = depthwise(hidden_channels, hidden_channels, 3, stride, linear=True)
        up = module(in_channels, hidden_channels)
        self.ghost_conv = nn.Sequential(up, down, module(hidden_channels, out_channels, linear=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H/s, W/s)``."""
        out: Tensor = self.ghost_conv(x)
        return out
