"""MobileOne's branches merged while they train: one convolution, and the gradients of all branches.

In training a BatchNorm normalizes by the batch. Mean and variance of a linear branch's output follow from
the moments of the input's patches (`patch_moments`), which all branches share; so the merged kernel of this very step
is known before any convolution has run. Gradients are exact: they flow through the merged kernel into weights and
factors, and through the moments into the input. Derived in docs/reparameterized-training.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pfld_edge_train.blocks.branch_algebra import BranchAlgebra
from pfld_edge_train.blocks.branch_kernels import split_kernels, stack_kernels
from pfld_edge_train.blocks.convolution_gradients import convolution_gradients
from pfld_edge_train.blocks.patch_geometry import PatchGeometry, images_at_once
from pfld_edge_train.blocks.patch_moments import patch_gradient, patch_moments
from pfld_edge_train.blocks.running_statistics import move_statistics
from pfld_edge_train.blocks.summed_over_processes import moments_over_processes, summed_over_processes

__all__ = ["MergedBlock", "merged_forward"]


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
        kernels = split_kernels(found.kernels.to(ctx.dtype), ctx.shapes)
        gammas = found.gamma.transpose(0, 1).flatten(1).to(ctx.dtype).unbind()
        betas = [beta.to(ctx.dtype)] * len(gammas)
        return (x_gradient, None, None, *kernels, *gammas, *betas)


def _merge(
    x: Tensor, block: MergedBlock, kernels: Sequence[Tensor], gammas: Sequence[Tensor], betas: Sequence[Tensor]
) -> tuple[BranchAlgebra, int]:
    """Find the merged kernel; moments that float32 can't tell are summed again in float64."""
    stacked = stack_kernels(kernels, len(gammas), block.geometry)
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
        algebra = BranchAlgebra(stacked.to(dtype), gamma.to(dtype), beta.to(dtype), epsilon, mean, covariance)
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
    patches = patch_gradient(x, geometry, constant, linear)
    for part, ours in parts:
        torch.add(ours, patches.of(x[part]), out=found[part])
    patches.finish(found, x)
    return found
