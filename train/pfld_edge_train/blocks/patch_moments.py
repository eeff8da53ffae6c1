"""First and second moments of the patches that a convolution sees, with exact gradients.

What BatchNorm needs to know of a linear branch follows from them: with patches p of the input, the branch's outputs W p
have the mean W E[p] and the variance of each channel is the diagonal of W Cov[p] W^T. Moments are sums over batch and
places, so that those of several processes add up.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pfld_edge_train.blocks.lag_moments import LagMoments

__all__ = ["PatchMoments", "patch_moments"]


@dataclass(frozen=True, slots=True)
class PatchMoments:
    """Sums over all patches of a batch; d is the patch's size, (input channels of a group) x k x k.

    Attributes:
        total: ``(G, d)`` float64 sums.
        products: ``(G, d, d)`` float64 sums of products.
        count: Number of patches.
        exact: Summed in float64; else in float32.
    """

    total: Tensor
    products: Tensor
    count: int
    exact: bool


def patch_moments(x: Tensor, kernel_size: int, stride: int, groups: int) -> PatchMoments:
    """Sum a convolution's input patches and their products.

    Args:
        x: ``(N, C, H, W)``, padded with ``kernel_size // 2`` zeros on each side.
        kernel_size: Odd side of the kernel.
        stride: Step of the kernel.
        groups: Of the convolution.
    """
    height, width = (-(-side // stride) for side in x.shape[2:])
    count = x.shape[0] * height * width
    if kernel_size == 1 and groups == 1:
        seen = x if stride == 1 else x[:, :, ::stride, ::stride]
        total, products = PointwiseMoments.apply(seen)  # type: ignore[no-untyped-call]
    elif kernel_size == 3 and stride == 1 and groups == x.shape[1]:
        total, products = LagMoments.apply(x)  # type: ignore[no-untyped-call]
    else:
        total, products = UnfoldedMoments.apply(x, kernel_size, stride, groups)  # type: ignore[no-untyped-call]
        return PatchMoments(total, products, count, exact=True)
    return PatchMoments(total, products, count, exact=x.dtype == torch.float64)


class PointwiseMoments(torch.autograd.Function):
    """Of single places, all channels: one product of a matrix with itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - torch's own interface
        """Map ``(N, C, H, W)`` to ``(1, C)`` and ``(1, C, C)``."""
        ctx.save_for_backward(x)
        rows = _rows(x)
        return rows.sum(dim=0).double()[None], (rows.T @ rows).double()[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401 - torch's own interface
        """Give the gradient of x: ``X (G + G^T) + g``."""
        (x,) = ctx.saved_tensors
        total, products = gradients
        rows = _rows(x)
        both = (products[0] + products[0].T).to(rows.dtype)
        found = torch.addmm(total[0].to(rows.dtype), rows, both)
        count, channels, height, width = x.shape
        return found.view(count, height, width, channels).permute(0, 3, 1, 2).to(x.dtype)


class UnfoldedMoments(torch.autograd.Function):
    """Of any patches, image by image, so that the patches of one image alone are in memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel_size: int, stride: int, groups: int) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - torch's own interface
        """Map ``(N, C, H, W)`` to ``(G, d)`` and ``(G, d, d)``."""
        ctx.save_for_backward(x)
        ctx.geometry = (kernel_size, stride, groups)
        size = x.shape[1] // groups * kernel_size**2
        total = x.new_zeros(groups, size, dtype=torch.float64)
        products = x.new_zeros(groups, size, size, dtype=torch.float64)
        for image in x:
            patches = _patches(image, kernel_size, stride, groups)
            total += patches.sum(dim=2)
            products += patches @ patches.mT
        return total, products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401 - torch's own interface
        """Give the gradient of x: ``(G + G^T) P + g``, folded back."""
        (x,) = ctx.saved_tensors
        kernel_size, stride, groups = ctx.geometry
        total, products = gradients
        both = products + products.mT
        found = torch.empty_like(x)
        for image, part in zip(x, found, strict=True):
            patches = _patches(image, kernel_size, stride, groups)
            columns = (torch.bmm(both, patches) + total[:, :, None]).flatten(0, 1).to(x.dtype)
            part[:] = F.fold(columns[None], image.shape[1:], kernel_size, padding=kernel_size // 2, stride=stride)[0]
        return found, None, None, None


def _rows(x: Tensor) -> Tensor:
    """All places as rows of channels, ``(N H W, C)``, at least float32; no copy where channels lie last already."""
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return rows if rows.dtype == torch.float64 else rows.float()


def _patches(image: Tensor, kernel_size: int, stride: int, groups: int) -> Tensor:
    """The patches of one image, ``(G, d, places)`` float64: neighbouring pixels are alike, so their products cancel."""
    columns = F.unfold(image[None].contiguous(), kernel_size, padding=kernel_size // 2, stride=stride)
    return columns.view(groups, -1, columns.shape[-1]).double()
