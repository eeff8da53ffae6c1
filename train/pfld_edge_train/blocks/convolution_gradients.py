"""The gradients of a convolution, by themselves."""

import torch
from torch import Tensor

from pfld_edge_train.blocks.patch_geometry import PatchGeometry

__all__ = ["convolution_gradients", "weight_gradient"]


def weight_gradient(out_gradient: Tensor, x: Tensor, weight: Tensor, geometry: PatchGeometry) -> Tensor:
    """Give the gradient of a kernel.

    Args:
        out_gradient: ``(N, out, H / s, W / s)``.
        x: ``(N, in, H, W)``.
        weight: ``(out, in / groups, k, k)``; its values don't matter.
        geometry: Of the convolution.
    """
    return _backward(out_gradient, x, weight, geometry, [False, True, False])[1]


def convolution_gradients(
    out_gradient: Tensor, x: Tensor, weight: Tensor, geometry: PatchGeometry, *, wanted: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Give the gradients of a convolution's input, if `wanted`, its kernel and its bias; see `weight_gradient`."""
    # The kernel's gradient reads all that the bias's needs; a sum of its own would read it again. In less than float32
    # the bias's would be rounded on the way.
    whole = out_gradient.dtype in (torch.float32, torch.float64)
    found = _backward(out_gradient, x, weight, geometry, [wanted, True, whole])
    bias = found[2] if whole else out_gradient.sum(dim=(0, 2, 3), dtype=torch.float32)
    return found[0] if wanted else None, found[1], bias


def _backward(
    out_gradient: Tensor, x: Tensor, weight: Tensor, geometry: PatchGeometry, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding = [geometry.stride] * 2, [geometry.padding] * 2
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        out_gradient, x, weight, [len(weight)], stride, padding, [1, 1], False, [0, 0], geometry.groups, wanted
    )
    return found
