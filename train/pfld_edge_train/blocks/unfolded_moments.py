"""Moments of patches of any shape: the patches are made, a few images at a time."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pfld_edge_train.blocks.patch_geometry import PatchGeometry, images_at_once
from pfld_edge_train.blocks.pointwise_moments import wide

__all__ = ["UnfoldedGradient", "UnfoldedMoments"]


class UnfoldedMoments:
    """Of any convolution with "same" padding."""

    def __init__(self, geometry: PatchGeometry) -> None:
        """Take the convolution's geometry."""
        self.geometry = geometry

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, C, H, W)`` to ``(G, d)`` and ``(G, d, d)``."""
        groups, area = self.geometry.groups, self.geometry.kernel_size**2
        size = x.shape[1] // groups * area
        total = torch.zeros(groups, size, dtype=torch.float64, device=x.device)
        products = torch.zeros(groups, size, size, dtype=torch.float64, device=x.device)
        for part in torch.split(x, images_at_once(x, copies=area / self.geometry.stride**2)):
            patches = _patches(wide(part), self.geometry)
            total += patches.sum(dim=3).sum(dim=0)
            products += (patches @ patches.mT).sum(dim=0)
        return total, products

    def gradient(self, constant: Tensor, linear: Tensor) -> "UnfoldedGradient":
        """Prepare ``linear P + constant``."""
        return UnfoldedGradient(self.geometry, constant, linear)


@dataclass(frozen=True, slots=True)
class UnfoldedGradient:
    """Patches times a matrix, folded back.

    Attributes:
        geometry: Of the convolution.
        constant: ``(G, d)``.
        linear: ``(G, d, d)``.
    """

    geometry: PatchGeometry
    constant: Tensor
    linear: Tensor

    def of(self, x: Tensor) -> Tensor:
        """Give the gradient of some images."""
        side, stride = self.geometry.kernel_size, self.geometry.stride
        columns = self.linear @ _patches(x.to(self.linear.dtype), self.geometry)
        columns += self.constant[:, :, None]
        return F.fold(columns.flatten(1, 2), x.shape[2:], side, padding=side // 2, stride=stride)

    def finish(self, found: Tensor, x: Tensor) -> None:
        """Nothing is left."""


def _patches(x: Tensor, geometry: PatchGeometry) -> Tensor:
    """``(N, G, d, places)``."""
    columns = F.unfold(x.contiguous(), geometry.kernel_size, padding=geometry.padding, stride=geometry.stride)
    return columns.view(len(x), geometry.groups, -1, columns.shape[2])
