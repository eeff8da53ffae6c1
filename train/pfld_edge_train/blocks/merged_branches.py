"""MobileOne's branches merged in every training step: one convolution, with the exact gradients of all branches.

In training BatchNorm normalizes by the batch. Mean and variance of a linear branch's output W p follow from the mean
and the covariance of the input's patches p, which all branches share: W E[p], and the diagonal of W Cov[p] W^T. So the
merged kernel of a step is known before any convolution has run. Gradients flow through the merged kernel into weights
and factors, and through the moments into the input. Derived in docs/reparameterized-training.md.

Shapes: G groups, B branches, O outputs of a group, d = (inputs of a group) x k x k.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pfld_edge_train.blocks.patch_moments import PatchGeometry, patch_gradient, patch_moments
from pfld_edge_train.blocks.synchronized import moments_over_processes, move_statistics

_LEAST_CERTAIN = 1e-3
"""Least variance of a branch, as a share of the mean square that its kernel sees, that float32 moments resolve."""
_ROUNDS = 3
"""A convolution runs once forward and twice backward: for its weights and for its input."""


def merge_pays(in_channels: int, out_channels: int, geometry: PatchGeometry, branches: int) -> bool:
    """Whether one convolution and the moments cost less than all branches.

    Counted in multiplications for each output place: a branch costs the output's channels times the patch's size,
    three times; the moments cost the patch's size squared, once forward and once backward. Memory traffic, two tensors
    for each branch and more in BatchNorm, only speaks for merging.
    """
    patch = in_channels // geometry.groups * geometry.kernel_size**2
    if geometry.groups == in_channels:
        return branches > 1
    outputs = out_channels // geometry.groups
    return _ROUNDS * branches * outputs > _ROUNDS * outputs + 2 * patch


def merged_branches(
    x: Tensor,
    geometry: PatchGeometry,
    kernels: Sequence[Tensor],
    norms: Sequence[nn.BatchNorm2d],
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Run a block's linear branches on ``(N, C, H, W)`` as one convolution: ``(N, out, H/s, W/s)``, their sum.

    Each branch has a kernel ``(out, in / groups, k, k)`` or 1x1 and a BatchNorm, whose running statistics are updated;
    a skip branch has a BatchNorm alone, the last one. The batches of a `group` of processes are one batch.

    Raises:
        ValueError: There is only one value for each channel, which has no variance.
    """
    if geometry.kernel_size == 1 and geometry.stride > 1:
        # A 1x1 kernel skips places. (Not by oneDNN's own steps: see `MobileOneBlock`.)
        x, geometry = x[:, :, :: geometry.stride, :: geometry.stride], PatchGeometry(1, 1, geometry.groups)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = _merged(x, geometry, _stack_kernels(kernels, len(norms), geometry), norms, group)
        weight, bias = weight.reshape(-1, *kernels[0].shape[1:]).to(x.dtype), bias.flatten().to(x.dtype)
        return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, groups=geometry.groups)


def _merged(
    x: Tensor,
    geometry: PatchGeometry,
    kernels: Tensor,
    norms: Sequence[nn.BatchNorm2d],
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """Merge ``(G, B, O, d)`` kernels into one ``(G, O, d)`` and a bias ``(G, O)``.

    Branch b normalizes ``W_b p``; with ``f_b = gamma_b / sigma_b`` the sum is ``W p + bias``, ``W = sum f_b W_b``.
    """
    parameters = torch.stack([*(norm.weight for norm in norms), *(norm.bias for norm in norms)])
    exact = x.dtype == torch.float64 or not x.is_cpu
    while True:
        mean, covariance = _PatchMoments.apply(x, geometry, exact)  # type: ignore[no-untyped-call]
        count = geometry.places(x)
        if group is not None:
            mean, covariance, count = moments_over_processes(mean, covariance, count, group)
        if count == 1:
            raise ValueError(f"BatchNorm needs more than one value for each channel, not an input of {tuple(x.shape)}")
        stacked = kernels.to(mean.dtype)
        flat, outputs = stacked.flatten(1, 2), stacked.shape[:3]
        gamma, beta = parameters.to(mean.dtype).view(2, outputs[1], outputs[0], outputs[2]).transpose(1, 2)
        variances = ((flat @ covariance) * flat).sum(dim=2).view(outputs).clamp(min=0)
        if exact or _is_certain(variances, flat, mean, covariance):
            break
        exact = True
    means = (flat @ mean[:, :, None]).view(outputs)
    move_statistics(norms, means.detach(), variances.detach(), count)
    factor = gamma * torch.rsqrt(variances + gamma.new_tensor([[norm.eps] for norm in norms]))
    return (factor[..., None] * stacked).sum(dim=1), (beta - factor * means).sum(dim=1)


@torch.no_grad()
def _is_certain(variances: Tensor, kernels: Tensor, mean: Tensor, covariance: Tensor) -> bool:
    """Whether all variances are more than a small difference of large sums, which float32 could not tell."""
    square = covariance.diagonal(dim1=1, dim2=2) + mean.square()
    seen = (kernels.square() @ square[:, :, None]).view(variances.shape)
    return not bool((variances < _LEAST_CERTAIN * seen).any())


class _PatchMoments(torch.autograd.Function):
    """`patch_moments`; summed in float64 where `exact`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, geometry: PatchGeometry, exact: bool) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - torch's own interface
        mean, covariance = patch_moments(x.double() if exact and x.is_cpu else x, geometry)
        ctx.save_for_backward(x, mean)
        ctx.geometry = geometry
        return mean, covariance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, mean: Tensor, covariance: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's own interface
        x, patch_mean = ctx.saved_tensors
        count = ctx.geometry.places(x)
        # d Cov / d p = (G + G^T) (p - E[p]) / n; d E[p] / d p = 1 / n.
        linear = (covariance + covariance.mT) / count
        constant = mean / count - (linear @ patch_mean[:, :, None])[:, :, 0]
        return patch_gradient(x, ctx.geometry, constant, linear), None, None


def _stack_kernels(kernels: Sequence[Tensor], branches: int, geometry: PatchGeometry) -> Tensor:
    """Stack the branches' kernels, ``(G, B, O, d)``: 1x1 kernels with zeros around, a skip branch's as the identity."""
    padding, side = geometry.padding, geometry.kernel_size
    whole = [kernel if kernel.shape[2] == side else F.pad(kernel, (padding,) * 4) for kernel in kernels]
    if branches > len(kernels):
        whole.append(nn.init.dirac_(torch.empty_like(whole[0]), geometry.groups))
    stacked = torch.stack(whole)
    groups, outputs = geometry.groups, stacked.shape[1]
    return stacked.reshape(branches, groups, outputs // groups, -1).transpose(0, 1)
