"""The two gradients of a convolution, each for itself."""

import torch
from torch import Tensor

from pfld_edge_train.blocks.patch_geometry import PatchGeometry

__all__ = ["input_gradient", "weight_gradient"]


def weight_gradient(out_gradient: Tensor, x: Tensor, weight: Tensor, geometry: PatchGeometry) -> Tensor:
    """Give the gradient of a kernel.

    Args:
        out_gradient: ``(N, out, H / s, W / s)``.
        x: ``(N, in, H, W)``.
        weight: ``(out, in / groups, k, k)``; its values don't matter.
        geometry: Of the convolution.
    """
    return _backward(out_gradient, x, weight, geometry, [False, True, False])[1]


def input_gradient(out_gradient: Tensor, x: Tensor, weight: Tensor, geometry: PatchGeometry) -> Tensor:
    """Give the gradient of a convolution's input, whose values don't matter; see `weight_gradient`."""
    return _backward(out_gradient, x, weight, geometry, [True, False, False])[0]


def _backward(
    out_gradient: Tensor, x: Tensor, weight: Tensor, geometry: PatchGeometry, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding = [geometry.stride] * 2, [geometry.padding] * 2
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        out_gradient, x, weight, None, stride, padding, [1, 1], False, [0, 0], geometry.groups, wanted
    )
    return found
