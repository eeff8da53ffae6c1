"""Moments of single places: products of a matrix with itself."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pfld_edge_train.blocks.convolution_gradients import weight_gradient
from pfld_edge_train.blocks.patch_geometry import PatchGeometry, images_at_once

__all__ = ["PointwiseGradient", "PointwiseMoments", "wide"]

_SPLIT = 96
"""Channels from which the symmetric product is worth computing in parts."""

_PARTS = 3


class PointwiseMoments:
    """Of a 1x1 convolution: the products of the channels."""

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, C, H, W)`` to ``(1, C)`` and ``(1, C, C)``."""
        channels = x.shape[1]
        total = torch.zeros(channels, dtype=torch.float64, device=x.device)
        products = wide(x[:0]).new_zeros(channels, channels)
        for part in torch.split(x, images_at_once(x)):
            values = wide(part)
            total += values.sum(dim=(0, 2, 3))
            _add_products(products, values)
        if channels >= _SPLIT:
            products = products.triu() + products.triu(1).T
        return total[None], products[None]

    def gradient(self, constant: Tensor, linear: Tensor) -> "PointwiseGradient":
        """Prepare ``linear x + constant`` at each place."""
        return PointwiseGradient(constant[0], linear[0, :, :, None, None])


@dataclass(frozen=True, slots=True)
class PointwiseGradient:
    """A 1x1 convolution.

    Attributes:
        bias: ``(C)``.
        kernel: ``(C, C, 1, 1)``.
    """

    bias: Tensor
    kernel: Tensor

    def of(self, x: Tensor) -> Tensor:
        """Give the gradient of some images."""
        return F.conv2d(x.to(self.kernel.dtype), self.kernel, self.bias)

    def finish(self, found: Tensor, x: Tensor) -> None:
        """Nothing is left."""


def wide(x: Tensor) -> Tensor:
    """The same in float32, if it had less."""
    return x if x.dtype == torch.float64 else x.float()


def _add_products(products: Tensor, x: Tensor) -> None:
    """Add ``X^T X``, a place a row; of many channels little more than the upper triangle."""
    channels = x.shape[1]
    if channels < _SPLIT and x.is_cpu and x.dtype == torch.float32:
        # A convolution's weight gradient is this product, and oneDNN's is faster for few channels.
        products += weight_gradient(x, x, x.new_empty(channels, channels, 1, 1), PatchGeometry(1, 1, 1))[:, :, 0, 0]
        return
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    step = channels if channels < _SPLIT else -(-channels // _PARTS)
    for start in range(0, channels, step):
        products[start : start + step, start:].addmm_(rows[:, start : start + step].T, rows[:, start:])
