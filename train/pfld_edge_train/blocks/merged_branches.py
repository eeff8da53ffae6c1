"""MobileOne's branches merged in every training step: one convolution, and the exact gradients of all branches.

In training BatchNorm normalizes by the batch. Mean and variance of a linear branch's output W p follow from the mean
and the covariance of the input's patches p, which all branches share: W E[p], and the diagonal of W Cov[p] W^T. So the
merged kernel of a step is known before any convolution has run. Gradients flow through the merged kernel into weights
and factors, and through the moments into the input. Derived in docs/reparameterized-training.md.

Shapes: G groups, B branches, O outputs of a group, d = (inputs of a group) x k x k.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pfld_edge_train.blocks.patch_moments import (
    PatchGeometry,
    convolution_gradients,
    images_at_once,
    patch_gradient,
    patch_moments,
)
from pfld_edge_train.blocks.synchronized import moments_over_processes, move_statistics, summed_over_processes

_LEAST_CERTAIN = 1e-3
"""Least variance of a branch, as a share of the mean square that its kernel sees, that float32 moments resolve."""
_ROUNDS = 3
"""A convolution runs once forward and twice backward: for its weights and for its input."""


@dataclass(frozen=True, slots=True)
class MergedBlock:
    """A block without its parameters.

    Attributes:
        geometry: Of its convolution.
        norms: One for each branch; their running statistics are updated. A skip branch's comes last.
        linear: No ReLU follows.
        group: Processes whose batches are one batch; None for this process alone.
    """

    geometry: PatchGeometry
    norms: Sequence[nn.BatchNorm2d]
    linear: bool
    group: dist.ProcessGroup | None = None


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
        """Merge ``(G, B, O, d)`` kernels, ``(G, B, O)`` factors and offsets, by the patches' mean and covariance."""
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

    def backward(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map the gradients of the merged kernel ``(G, O, d)`` and bias ``(G, O)`` back.

        Returns:
            Those of the kernels ``(G, B, O, d)``, of gamma ``(G, B, O)``, of the patches' mean ``(G, d)`` and of their
            covariance ``(G, d, d)``, symmetric. Each beta's is that of the bias.
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
        return kernels, gamma, (mean.flatten(1)[:, None] @ flat)[:, 0], torch.bmm(weighted.mT, flat)


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


def merged_forward(x: Tensor, block: MergedBlock, kernels: Sequence[Tensor]) -> Tensor:
    """Run a block's branches as one convolution.

    Args:
        x: ``(N, C, H, W)``.
        block: The block.
        kernels: One for each BatchNorm, ``(out, in / groups, k, k)`` or 1x1; a skip branch has none.

    Returns:
        ``(N, out, H/s, W/s)``, the sum of the normalized branches, after ReLU.

    Raises:
        ValueError: There is only one value for each channel, which has no variance.
    """
    geometry = block.geometry
    if geometry.kernel_size == 1 and geometry.stride > 1:
        # A 1x1 kernel skips places. (Not by oneDNN's own steps: see `MobileOneBlock`.)
        x = x[:, :, :: geometry.stride, :: geometry.stride]
        block = replace(block, geometry=PatchGeometry(1, 1, geometry.groups))
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
        stacked, gamma, mean, covariance = algebra.backward(
            weight_sum.reshape(algebra.weight.shape).to(beta.dtype), beta.view(algebra.bias.shape)
        )
        x_gradient = None
        if ctx.needs_input_grad[0]:
            if block.group is not None:
                mean, covariance = summed_over_processes((mean, covariance), block.group)
            # d Cov / d p = (G + G^T) (p - E[p]) / n, and G is symmetric; d E[p] / d p = 1 / n.
            linear = covariance * (2 / ctx.count)
            constant = mean / ctx.count - (linear @ algebra.patch_mean[:, :, None])[:, :, 0]
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            constant, linear, x_gradient = constant.to(dtype), linear.to(dtype), torch.empty_like(x)
            for part, ours in zip(_chunks(x, block.geometry), parts, strict=True):
                torch.add(ours, patch_gradient(x[part], block.geometry, constant, linear), out=x_gradient[part])
        kernels = _split_kernels(stacked.to(ctx.dtype), ctx.shapes)
        gammas = gamma.transpose(0, 1).flatten(1).to(ctx.dtype).unbind()
        betas = [beta.to(ctx.dtype)] * len(gammas)
        return (x_gradient, None, None, *kernels, *gammas, *betas)


def _merge(
    x: Tensor, block: MergedBlock, kernels: Sequence[Tensor], gammas: Sequence[Tensor], betas: Sequence[Tensor]
) -> tuple[_BranchAlgebra, int]:
    """Find the merged kernel; moments that float32 can't resolve are summed again in float64."""
    stacked = _stack_kernels(kernels, len(gammas), block.geometry)
    gamma, beta = (
        torch.unflatten(torch.stack(list(values)), 1, (len(stacked), -1)).transpose(0, 1) for values in (gammas, betas)
    )
    epsilon = gamma.new_tensor([[norm.eps] for norm in block.norms])
    while True:
        (mean, covariance), count = patch_moments(x, block.geometry), block.geometry.places(x)
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
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients of the merged convolution's input, chunk by chunk, if `wanted`, of its kernel and of its bias."""
    dtype = torch.float64 if out_gradient.dtype == torch.float64 else torch.float32
    weights = torch.zeros(weight.shape, dtype=dtype, device=x.device)
    biases = torch.zeros(len(weight), dtype=dtype, device=x.device)
    parts: list[Tensor] = []
    for part in _chunks(x, block.geometry):
        gradient = out_gradient[part]
        if outputs:
            gradient = torch.ops.aten.threshold_backward(gradient, outputs[0][part], 0)
        ours, kernel, bias = convolution_gradients(gradient, x[part], weight, block.geometry, wanted=wanted)
        weights += kernel
        biases += bias
        if ours is not None:
            parts.append(ours)
    return parts, weights, biases


def _chunks(x: Tensor, geometry: PatchGeometry) -> list[slice]:
    """Parts of a batch that fit into the cache."""
    size = images_at_once(x, geometry)
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _stack_kernels(kernels: Sequence[Tensor], branches: int, geometry: PatchGeometry) -> Tensor:
    """Stack the branches' kernels, ``(G, B, O, d)``: 1x1 kernels with zeros around, a skip branch's as the identity."""
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
    """Undo `_stack_kernels` for gradients."""
    found = []
    for gradient, shape in zip(stacked.unbind(dim=1), shapes, strict=False):
        outputs, inputs, side = shape[:3]
        values = gradient.reshape(outputs, inputs, -1)
        found.append(
            values.view(shape) if values.shape[2] == side**2 else values[:, :, values.shape[2] // 2, None, None]
        )
    return found
