"""Mean and covariance of the patches that a convolution sees, and what their gradients give back to its input.

What BatchNorm needs to know of a linear branch follows from them: with patches p of the input, the branch's outputs W p
have the mean W E[p], and their variances are the diagonal of W Cov[p] W^T. See docs/reparameterized-training.md.
"""

from typing import Protocol

import torch
from torch import Tensor

from pfld_edge_train.blocks.depthwise_moments import DepthwiseMoments
from pfld_edge_train.blocks.lag_moments import LagMoments
from pfld_edge_train.blocks.patch_geometry import PatchGeometry
from pfld_edge_train.blocks.pointwise_moments import PointwiseMoments
from pfld_edge_train.blocks.unfolded_moments import UnfoldedMoments

__all__ = ["MomentsMethod", "PatchGradient", "moments_method", "patch_gradient", "patch_moments"]

_SMALL_PATCH = 64
"""Patches up to this size cost nothing in float64."""


class MomentsMethod(Protocol):
    """One way to compute; d is the patch's size, (input channels of a group) x k x k."""

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the patches, ``(G, d)``, and their products, ``(G, d, d)``, in float32 or float64."""
        ...

    def gradient(self, constant: Tensor, linear: Tensor) -> "PatchGradient":
        """Prepare to fold patches that have the gradient ``constant + linear p``.

        Args:
            constant: ``(G, d)``.
            linear: ``(G, d, d)``, symmetric, of the same type.
        """
        ...


class PatchGradient(Protocol):
    """Gradients of patches, folded back to the map they were taken from."""

    def of(self, x: Tensor) -> Tensor:
        """Give the gradient of some images ``(N, C, H, W)``, in the type of the coefficients."""
        ...

    def finish(self, found: Tensor, x: Tensor) -> None:
        """Add to the whole batch's gradient, in place, what `of` left out."""
        ...


def moments_method(x: Tensor, geometry: PatchGeometry) -> MomentsMethod:
    """Choose the cheapest way."""
    if geometry.groups == 1 and geometry.kernel_size == 1:
        return PointwiseMoments()
    if geometry.groups == x.shape[1] and geometry.kernel_size == 3:
        return LagMoments() if geometry.stride == 1 and min(x.shape[2:]) > 1 else DepthwiseMoments(geometry)
    return UnfoldedMoments(geometry)


def patch_moments(x: Tensor, geometry: PatchGeometry) -> tuple[Tensor, Tensor]:
    """Compute the moments of a convolution's input patches.

    Args:
        x: ``(N, C, H, W)``, padded with ``kernel_size // 2`` zeros on each side.
        geometry: Of the convolution.

    Returns:
        The mean ``(G, d)`` and the covariance ``(G, d, d)``, divided by the count; float64 where that costs nothing.
    """
    total, products = moments_method(x, geometry).sums(x)
    count = geometry.places(x)
    exact = x.dtype == torch.float64 or total.shape[1] <= _SMALL_PATCH
    dtype = torch.float64 if exact else torch.float32
    mean = total.to(dtype) / count
    return mean, torch.baddbmm(products.to(dtype), mean[:, :, None], mean[:, None], beta=1 / count, alpha=-1)


def patch_gradient(x: Tensor, geometry: PatchGeometry, constant: Tensor, linear: Tensor) -> PatchGradient:
    """Prepare to fold gradients of x's patches, see `MomentsMethod.gradient`."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return moments_method(x, geometry).gradient(constant.to(dtype), linear.to(dtype))
