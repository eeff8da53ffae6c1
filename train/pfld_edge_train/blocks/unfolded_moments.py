"""Moments of patches of any shape: the patches are made, a few images at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pfld_edge_train.blocks.patch_geometry import PatchGeometry, images_at_once
from pfld_edge_train.blocks.pointwise_moments import wide

__all__ = ["UnfoldedMoments"]


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
        for part in x.split(images_at_once(x, copies=area / self.geometry.stride**2)):
            patches = self._patches(part)
            total += patches.sum(dim=3).sum(dim=0)
            products += (patches @ patches.mT).sum(dim=0)
        return total, products

    def add_gradient(self, found: Tensor, x: Tensor, constant: Tensor, linear: Tensor) -> None:
        """Add ``linear P + constant``, folded back."""
        side, stride = self.geometry.kernel_size, self.geometry.stride
        columns = linear @ self._patches(x).to(linear.dtype)
        columns += constant[:, :, None]
        found += F.fold(columns.flatten(1, 2), x.shape[2:], side, padding=side // 2, stride=stride).to(found.dtype)

    def _patches(self, x: Tensor) -> Tensor:
        """``(N, G, d, places)``, at least float32."""
        side = self.geometry.kernel_size
        columns = F.unfold(wide(x).contiguous(), side, padding=side // 2, stride=self.geometry.stride)
        return columns.view(len(x), self.geometry.groups, -1, columns.shape[2])
