"""MobileOne's branches merged while they train: one convolution, and the gradients of all branches.

In training a BatchNorm normalizes by the batch. Mean and variance of a linear branch's output follow from
the moments of the input's patches (`patch_moments`), which all branches share; so the merged kernel of this very step
is known before any convolution has run. Gradients are exact: they flow through the merged kernel into weights and
factors, and through the moments into the input. Derived in docs/reparameterized-training.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_train.blocks.patch_moments import PatchMoments, patch_moments
from pfld_edge_train.blocks.synchronized import summed_over_processes

__all__ = ["Branch", "merge_pays", "merged_forward"]

_LEAST_CERTAIN = 1e-3
"""Least variance of a branch, as a share of what its kernel sees, that float32 moments still tell."""

_ROUNDS = 3
"""A convolution runs once forward and twice backward: for its weights and for its input."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch's kernel at the block's size, and its BatchNorm.

    Attributes:
        weight: ``(out, in / groups, k, k)``.
        norm: Normalizes its output.
    """

    weight: Tensor
    norm: nn.BatchNorm2d


def merge_pays(in_channels: int, out_channels: int, kernel_size: int, groups: int, branches: int) -> bool:
    """Say whether one convolution and the moments cost less than all branches.

    In multiply-accumulates an output place: a branch costs the output's channels times the patch's size, thrice; the
    moments cost the patch's size squared, once forward and once backward. What is saved in memory traffic, two tensors
    a branch and more in BatchNorm, only speaks for merging.
    """
    patch = in_channels // groups * kernel_size**2
    if groups == in_channels:
        return branches > 1
    return _ROUNDS * branches * out_channels // groups > _ROUNDS * out_channels // groups + 2 * patch


def merged_forward(
    x: Tensor, branches: Sequence[Branch], stride: int, groups: int, group: dist.ProcessGroup | None = None
) -> Tensor | None:
    """Run a block's branches as one convolution, and move the running statistics.

    Args:
        x: ``(N, C, H, W)``.
        branches: All of one kernel size.
        stride: Of the convolution.
        groups: Of the convolution.
        group: Processes whose batches are one batch; None for this one's alone.

    Returns:
        ``(N, out, H/s, W/s)``, the sum of the normalized branches; None where the variances are too small a difference
        of large sums to be told, and nothing was changed.
    """
    out_channels, size = branches[0].weight.shape[0], branches[0].weight.shape[-1]
    with torch.autocast(x.device.type, enabled=False):
        moments = patch_moments(x, size, stride, groups)
        if group is not None:
            moments = _shared(moments, group)
        kernels = torch.stack([branch.weight.flatten(1) for branch in branches]).double()
        kernels = kernels.view(len(branches), groups, out_channels // groups, -1)
        mean, variance, seen = _statistics(kernels, moments)
        if not moments.exact and bool((variance.detach() < _LEAST_CERTAIN * seen).any()):
            return None
        factors, offsets = [], []
        for branch, m, v in zip(branches, mean, variance, strict=True):
            factor = branch.norm.weight * torch.rsqrt(v + branch.norm.eps)
            factors.append(factor)
            offsets.append(branch.norm.bias - factor * m)
            _move_statistics(branch.norm, m.detach(), v.detach(), moments.count)
        factor = torch.stack(factors).view(*kernels.shape[:3], 1)
        weight = (factor * kernels).sum(dim=0).view_as(branches[0].weight).to(branches[0].weight.dtype)
        bias = torch.stack(offsets).sum(dim=0).to(weight.dtype)
    return F.conv2d(x, weight, bias, stride, size // 2, groups=groups)


def _statistics(kernels: Tensor, moments: PatchMoments) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each branch's outputs, ``(B, out)``, and what rounding errors are in proportion to."""
    first, second = moments.total / moments.count, moments.products / moments.count
    mean = torch.einsum("bgod,gd->bgo", kernels, first)
    square = (torch.einsum("bgod,gde->bgoe", kernels, second) * kernels).sum(dim=3)
    variance = (square - mean.square()).clamp(min=0)
    with torch.no_grad():
        seen = torch.einsum("bgod,gd->bgo", kernels.square(), second.diagonal(dim1=1, dim2=2))
    return mean.flatten(1), variance.flatten(1), seen.flatten(1)


def _shared(moments: PatchMoments, group: dist.ProcessGroup) -> PatchMoments:
    count = moments.total.new_tensor([[moments.count]])
    parts = (moments.total.flatten(), moments.products.flatten(), count.flatten())
    summed = summed_over_processes(torch.cat(parts), group)
    total, products, count = torch.split(summed, [part.numel() for part in parts])
    shape = moments.products.shape
    return PatchMoments(total.view_as(moments.total), products.view(shape), round(float(count)), moments.exact)


@torch.no_grad()
def _move_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Do to the running statistics what BatchNorm does: momentum, and the unbiased variance."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_((variance * (count / max(1, count - 1))).to(norm.running_var.dtype), share)
