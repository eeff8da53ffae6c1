"""Moments of single places: products of a matrix with itself."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PointwiseGradient", "PointwiseMoments", "wide"]

_ROWS = 4096
"""Rows that are multiplied at once."""

_HALVED = 96
"""Channels from which the symmetric product is worth computing in parts."""


class PointwiseMoments:
    """Of a 1x1 convolution: the products of the channels."""

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, C, H, W)`` to ``(1, C)`` and ``(1, C, C)``."""
        rows = _rows(x)
        channels = rows.shape[1]
        total = torch.zeros(channels, dtype=torch.float64, device=x.device)
        products = wide(x[:0]).new_zeros(channels, channels)
        for part in rows.split(_ROWS if x.is_cpu else len(rows)):
            values = wide(part)
            total += values.sum(dim=0)
            _add_products(products, values)
        if channels >= _HALVED:
            half = channels // 2
            products[half:, :half] = products[:half, half:].T
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


def _rows(x: Tensor) -> Tensor:
    """All places as rows of channels, ``(N H W, C)``; no copy where channels lie last already."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _add_products(products: Tensor, rows: Tensor) -> None:
    """Add ``X^T X``; for many channels without the lower left quarter, which is the upper right one."""
    channels = rows.shape[1]
    if channels < _HALVED:
        products.addmm_(rows.T, rows)
        return
    half = channels // 2
    products[:half].addmm_(rows[:, :half].T, rows)
    products[half:, half:].addmm_(rows[:, half:].T, rows[:, half:])
