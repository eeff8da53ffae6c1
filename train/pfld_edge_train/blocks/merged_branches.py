"""MobileOne's branches merged in every training step: one convolution, and the exact gradients of all branches.

In training a BatchNorm normalizes by the batch. Mean and variance of a linear branch's output W p follow from the mean
and the covariance of the input's patches p, which all branches share: W E[p], and the diagonal of W Cov[p] W^T. So the
merged kernel of a step is known before any convolution has run. Gradients flow through the merged kernel into weights
and factors, and through the moments into the input. Derived in docs/reparameterized-training.md.

Shapes: G groups, B branches, O outputs of a group, d = (inputs of a group) x k x k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pfld_edge_train.blocks.lag_moments import LagMoments
from pfld_edge_train.blocks.patch_moments import (
    DepthwiseMoments,
    MomentsMethod,
    PatchGeometry,
    PatchGradient,
    PointwiseMoments,
    UnfoldedMoments,
    convolution_gradients,
    images_at_once,
)
from pfld_edge_train.blocks.synchronized import moments_over_processes, move_statistics, summed_over_processes

__all__ = ["MergedBlock", "merge_pays", "merged_forward"]

_LEAST_CERTAIN = 1e-3
"""Least variance of a branch, as a share of the mean square that its kernel sees, that float32 moments resolve."""
_ROUNDS = 3
"""A convolution runs once forward and twice backward: for its weights and for its input."""
_SMALL_PATCH = 64
"""Patches up to this size cost nothing in float64."""


@dataclass(frozen=True, slots=True)
class MergedBlock:
    """What a block is, but for its parameters.

    Attributes:
        geometry: Of its convolution.
        norms: One a branch; their running statistics are moved. Those without a kernel come last.
        linear: No ReLU follows.
        group: Processes whose batches are one batch; None for this one's alone.
    """

    geometry: PatchGeometry
    norms: Sequence[nn.BatchNorm2d]
    linear: bool
    group: dist.ProcessGroup | None = None


@dataclass(frozen=True, slots=True)
class _BranchGradients:
    """What the gradients of the merged kernel and bias give.

    Attributes:
        kernels: ``(G, B, O, d)``.
        gamma: ``(G, B, O)``.
        mean: ``(G, d)``.
        covariance: ``(G, d, d)``, symmetric.
    """

    kernels: Tensor
    gamma: Tensor
    mean: Tensor
    covariance: Tensor


class _BranchAlgebra:
    """Branch b normalizes ``W_b p``; with ``f_b = gamma_b / sigma_b`` the sum is ``W p + bias``, ``W = sum f_b W_b``.

    Attributes:
        means: Of the branches' outputs, ``(G, B, O)``.
        variances: Likewise, divided by the count.
        weight: Merged, ``(G, O, d)``.
        bias: Merged, ``(G, O)``.
    """

    def __init__(
        self, kernels: Tensor, gamma: Tensor, beta: Tensor, epsilon: Tensor, mean: Tensor, covariance: Tensor
    ) -> None:
        """Merge.

        Args:
            kernels: ``(G, B, O, d)``.
            gamma: BatchNorms' factors, ``(G, B, O)``.
            beta: BatchNorms' offsets, ``(G, B, O)``.
            epsilon: BatchNorms' least variances, ``(B, 1)``.
            mean: Of the patches, ``(G, d)``.
            covariance: Of the patches, ``(G, d, d)``.
        """
        self.kernels, self.gamma, self.patch_mean = kernels, gamma, mean
        flat = kernels.flatten(1, 2)
        self.product = (flat @ covariance).view(kernels.shape)
        self.means = (flat @ mean[:, :, None]).view(gamma.shape)
        self.variances = (self.product * kernels).sum(dim=3).clamp_(min=0)
        self.scale = torch.rsqrt(self.variances + epsilon)
        self.factor = gamma * self.scale
        self.weight = (self.factor[..., None] * kernels).sum(dim=1)
        self.bias = torch.addcmul(beta, self.factor, self.means, value=-1).sum(dim=1)

    def is_certain(self, covariance: Tensor) -> bool:
        """Whether all variances are more than a small difference of large sums, which float32 could not tell."""
        square = covariance.diagonal(dim1=1, dim2=2) + self.patch_mean.square()
        seen = (self.kernels.square().flatten(1, 2) @ square[:, :, None]).view(self.variances.shape)
        return not bool((self.variances < _LEAST_CERTAIN * seen).any())

    def backward(self, weight: Tensor, bias: Tensor) -> _BranchGradients:
        """Go back.

        Args:
            weight: Gradient of the merged kernel, ``(G, O, d)``.
            bias: Gradient of the merged bias, ``(G, O)``; of each beta as well.
        """
        bias = bias[:, None]
        factor = (weight[:, None] * self.kernels).sum(dim=3) - bias * self.means
        gamma = factor * self.scale
        # d sigma^-1 / d variance = -sigma^-3 / 2
        variance = gamma * self.factor * self.scale * -0.5
        mean = self.factor * -bias
        kernels = self.factor[..., None] * weight[:, None]
        kernels.addcmul_(variance[..., None], self.product, value=2)
        kernels.addcmul_(mean[..., None], self.patch_mean[:, None, None])
        flat = self.kernels.flatten(1, 2)
        weighted = variance.flatten(1)[..., None] * flat
        return _BranchGradients(kernels, gamma, (mean.flatten(1)[:, None] @ flat)[:, 0], torch.bmm(weighted.mT, flat))


def merge_pays(in_channels: int, out_channels: int, geometry: PatchGeometry, branches: int) -> bool:
    """Say whether one convolution and the moments cost less than all branches.

    In multiply-accumulates an output place: a branch costs the output's channels times the patch's size, thrice; the
    moments cost the patch's size squared, once forward and once backward. What is saved in memory traffic, two tensors
    a branch and more in BatchNorm, only speaks for merging.

    Args:
        in_channels: Of the block.
        out_channels: Of the block.
        geometry: Of its convolutions.
        branches: Its BatchNorms.
    """
    patch = in_channels // geometry.groups * geometry.kernel_size**2
    if geometry.groups == in_channels:
        return branches > 1
    outputs = out_channels // geometry.groups
    return _ROUNDS * branches * outputs > _ROUNDS * outputs + 2 * patch


def merged_forward(x: Tensor, block: MergedBlock, kernels: Sequence[Tensor]) -> Tensor:
    """Run a block's branches as one convolution.

    Args:
        x: ``(N, C, H, W)``.
        block: The block.
        kernels: One for each BatchNorm, ``(out, in / groups, k, k)`` or 1x1; a BatchNorm more is a skip branch's.

    Returns:
        ``(N, out, H/s, W/s)``, the sum of the normalized branches, after ReLU.

    Raises:
        ValueError: There is but one value for each channel, which has no variance.
    """
    geometry = block.geometry
    if geometry.kernel_size == 1 and geometry.stride > 1:
        # A 1x1 kernel skips places. (Not by oneDNN's own steps: see `MobileOneBlock`.)
        x = x[:, :, :: geometry.stride, :: geometry.stride]
        block = MergedBlock(PatchGeometry(1, 1, geometry.groups), block.norms, block.linear, block.group)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    gammas, betas = [norm.weight for norm in block.norms], [norm.bias for norm in block.norms]
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _MergedConvolution.apply(x, block, len(kernels), *kernels, *gammas, *betas)  # type: ignore[no-untyped-call]
    return out


class _MergedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: MergedBlock, kernel_count: int, *parameters: Tensor) -> Tensor:  # noqa: ANN401 - torch's own interface
        branches = len(block.norms)
        kernels, rest = parameters[:kernel_count], parameters[kernel_count:]
        algebra, count = _merge(x, block, kernels, rest[:branches], rest[branches:])
        move_statistics(block.norms, algebra.means, algebra.variances, count)
        weight = algebra.weight.reshape(-1, *kernels[0].shape[1:]).to(x.dtype)
        bias = algebra.bias.flatten().to(x.dtype)
        geometry = block.geometry
        out = F.conv2d(x, weight, bias, geometry.stride, geometry.padding, groups=geometry.groups)
        if not block.linear:
            out = out.relu_()
        ctx.save_for_backward(x, weight, *(() if block.linear else (out,)))
        ctx.block, ctx.algebra, ctx.count = block, algebra, count
        ctx.shapes = [kernel.shape for kernel in kernels]
        ctx.dtype = kernels[0].dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's own interface
        x, weight, *outputs = ctx.saved_tensors
        block, algebra = ctx.block, ctx.algebra
        parts, weight_sum, bias_sum = _convolution_gradients(
            x, weight, block, out_gradient, outputs, ctx.needs_input_grad[0]
        )
        beta = bias_sum.to(algebra.bias.dtype)
        found = algebra.backward(weight_sum.reshape(algebra.weight.shape).to(beta.dtype), beta.view(algebra.bias.shape))
        x_gradient = None
        if ctx.needs_input_grad[0]:
            mean, covariance = found.mean, found.covariance
            if block.group is not None:
                mean, covariance = summed_over_processes((mean, covariance), block.group)
            # d Cov / d p = (G + G^T) (p - E[p]) / n, and G is symmetric; d E[p] / d p = 1 / n.
            linear = covariance * (2 / ctx.count)
            constant = mean / ctx.count - (linear @ algebra.patch_mean[:, :, None])[:, :, 0]
            x_gradient = _with_moments(parts, x, block.geometry, constant, linear)
        kernels = _split_kernels(found.kernels.to(ctx.dtype), ctx.shapes)
        gammas = found.gamma.transpose(0, 1).flatten(1).to(ctx.dtype).unbind()
        betas = [beta.to(ctx.dtype)] * len(gammas)
        return (x_gradient, None, None, *kernels, *gammas, *betas)


def _merge(
    x: Tensor, block: MergedBlock, kernels: Sequence[Tensor], gammas: Sequence[Tensor], betas: Sequence[Tensor]
) -> tuple[_BranchAlgebra, int]:
    """Find the merged kernel; moments that float32 can't tell are summed again in float64."""
    stacked = _stack_kernels(kernels, len(gammas), block.geometry)
    gamma, beta = (
        torch.unflatten(torch.stack(list(values)), 1, (len(stacked), -1)).transpose(0, 1) for values in (gammas, betas)
    )
    epsilon = gamma.new_tensor([[norm.eps] for norm in block.norms])
    while True:
        (mean, covariance), count = _patch_moments(x, block.geometry), block.geometry.places(x)
        if block.group is not None:
            mean, covariance, count = moments_over_processes(mean, covariance, count, block.group)
        if count == 1:
            raise ValueError(f"BatchNorm needs more than one value for each channel, not an input of {tuple(x.shape)}")
        dtype = mean.dtype
        algebra = _BranchAlgebra(stacked.to(dtype), gamma.to(dtype), beta.to(dtype), epsilon, mean, covariance)
        if x.dtype == torch.float64 or not x.is_cpu or algebra.is_certain(covariance):
            return algebra, count
        x = x.double()


def _convolution_gradients(
    x: Tensor, weight: Tensor, block: MergedBlock, out_gradient: Tensor, outputs: Sequence[Tensor], wanted: bool
) -> tuple[list[tuple[slice, Tensor]], Tensor, Tensor]:
    """Give the merged convolution's gradients, some images at a time: what the ReLU lets through stays in the cache.

    Returns:
        Those of x, images by images, if `wanted`; the kernel's; the bias's.
    """
    dtype = torch.float64 if out_gradient.dtype == torch.float64 else torch.float32
    weights = torch.zeros(weight.shape, dtype=dtype, device=x.device)
    biases = torch.zeros(len(weight), dtype=dtype, device=x.device)
    parts: list[tuple[slice, Tensor]] = []
    size = images_at_once(x)
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        gradient = out_gradient[part]
        if outputs:
            gradient = torch.ops.aten.threshold_backward(gradient, outputs[0][part], 0)
        ours, kernel, bias = convolution_gradients(gradient, x[part], weight, block.geometry, wanted=wanted)
        weights += kernel
        biases += bias
        if ours is not None:
            parts.append((part, ours))
    return parts, weights, biases


def _with_moments(
    parts: Sequence[tuple[slice, Tensor]], x: Tensor, geometry: PatchGeometry, constant: Tensor, linear: Tensor
) -> Tensor:
    """Add the moments' gradient of x to the convolution's."""
    found = torch.empty_like(x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    patches: PatchGradient = _moments_method(x, geometry).gradient(constant.to(dtype), linear.to(dtype))
    for part, ours in parts:
        torch.add(ours, patches.of(x[part]), out=found[part])
    if patches.finish is not None:
        patches.finish(found, x)
    return found


def _moments_method(x: Tensor, geometry: PatchGeometry) -> MomentsMethod:
    """Choose the cheapest way."""
    if geometry.groups == 1 and geometry.kernel_size == 1:
        return PointwiseMoments()
    if geometry.groups == x.shape[1] and geometry.kernel_size == 3:
        return LagMoments() if geometry.stride == 1 and min(x.shape[2:]) > 1 else DepthwiseMoments(geometry)
    return UnfoldedMoments(geometry)


def _patch_moments(x: Tensor, geometry: PatchGeometry) -> tuple[Tensor, Tensor]:
    """Compute the moments of a convolution's input patches.

    Args:
        x: ``(N, C, H, W)``, padded with ``kernel_size // 2`` zeros on each side.
        geometry: Of the convolution.

    Returns:
        The mean ``(G, d)`` and the covariance ``(G, d, d)``, divided by the count; float64 where that costs nothing.
    """
    total, products = _moments_method(x, geometry).sums(x)
    count = geometry.places(x)
    exact = x.dtype == torch.float64 or total.shape[1] <= _SMALL_PATCH
    dtype = torch.float64 if exact else torch.float32
    mean = total.to(dtype) / count
    return mean, torch.baddbmm(products.to(dtype), mean[:, :, None], mean[:, None], beta=1 / count, alpha=-1)


def _stack_kernels(kernels: Sequence[Tensor], branches: int, geometry: PatchGeometry) -> Tensor:
    """Stack kernels of one size: a 1x1 kernel lies in the middle of zeros, a skip branch is the identity's kernel.

    Args:
        kernels: ``(out, in / groups, k, k)`` or 1x1; the first has the full size.
        branches: One more than kernels if there is a skip branch.
        geometry: Of the convolution.

    Returns:
        ``(G, B, O, d)``.
    """
    outputs, inputs = kernels[0].shape[:2]
    area, groups = geometry.kernel_size**2, geometry.groups
    stacked = kernels[0].new_zeros(branches, outputs, inputs, area)
    whole = [kernel for kernel in kernels if kernel.shape[2] == geometry.kernel_size]
    torch.stack([kernel.flatten(2) for kernel in whole], out=stacked[: len(whole)])
    for kernel, into in zip(kernels[len(whole) :], stacked[len(whole) :], strict=False):
        into[:, :, area // 2] = kernel[:, :, 0, 0]
    if branches > len(kernels):
        identity = stacked[-1].view(groups, -1, inputs, area)[..., area // 2]
        identity.diagonal(dim1=1, dim2=2).fill_(1)
    return stacked.view(branches, groups, outputs // groups, inputs * area).transpose(0, 1).contiguous()


def _split_kernels(stacked: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Take gradients apart.

    Args:
        stacked: As `_stack_kernels` gave it.
        shapes: Of the kernels.
    """
    found = []
    for gradient, shape in zip(stacked.unbind(dim=1), shapes, strict=False):
        outputs, inputs, side = shape[:3]
        values = gradient.reshape(outputs, inputs, -1)
        found.append(
            values.view(shape) if values.shape[2] == side**2 else values[:, :, values.shape[2] // 2, None, None]
        )
    return found
