"""Moments of the patches that a depthwise convolution sees, tap by tap.

Tap a of the patches is the padded input, shifted and thinned: a map of the output's size. Its products with all taps are
the weight gradient of the depthwise convolution itself, with that map in the place of the output's gradient; and what
the covariance's gradient gives back is, a tap at a time, a depthwise convolution that is added at the tap's places.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pfld_edge_train.blocks.patch_geometry import PatchGeometry, images_at_once
from pfld_edge_train.blocks.pointwise_moments import wide

__all__ = ["DepthwiseMoments", "correlation"]


class DepthwiseMoments:
    """Of a depthwise convolution with "same" padding and any stride."""

    def __init__(self, geometry: PatchGeometry) -> None:
        """Take the convolution's geometry."""
        self.geometry = geometry

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, C, H, W)`` to ``(C, d)`` and ``(C, d, d)`` with ``d = k * k``."""
        channels, side, stride = x.shape[1], self.geometry.kernel_size, self.geometry.stride
        taps = side * side
        total = torch.zeros(channels, taps, dtype=torch.float64, device=x.device)
        products = torch.zeros(channels, taps, taps, dtype=torch.float64, device=x.device)
        for part in x.split(images_at_once(x, copies=1 / 4)):
            padded = self._padded(wide(part))
            for tap in range(taps):
                seen = self._seen(padded, tap).contiguous(memory_format=torch.channels_last)
                total[:, tap] += seen.sum(dim=(0, 2, 3))
                products[:, tap] += correlation(padded, seen, side, stride).flatten(1)
        return total, (products + products.mT) / 2

    def add_gradient(self, found: Tensor, x: Tensor, constant: Tensor, linear: Tensor) -> None:
        """Add ``linear P + constant``, folded back."""
        side, pad = self.geometry.kernel_size, self.geometry.padding
        padded = self._padded(x.to(linear.dtype))
        folded = torch.zeros_like(padded)
        for tap in range(side * side):
            kernel = linear[:, tap].reshape(-1, 1, side, side)
            at = self._seen(folded, tap)
            at += F.conv2d(padded, kernel, constant[:, tap].contiguous(), self.geometry.stride, groups=x.shape[1])
        found += folded[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]].to(found.dtype)

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, [self.geometry.padding] * 4).contiguous(memory_format=torch.channels_last)

    def _seen(self, padded: Tensor, tap: int) -> Tensor:
        """View what a tap sees of the padded input."""
        side, stride = self.geometry.kernel_size, self.geometry.stride
        down, across = divmod(tap, side)
        rows = slice(down, padded.shape[2] - side + down + 1, stride)
        return padded[:, :, rows, across : padded.shape[3] - side + across + 1 : stride]


def correlation(x: Tensor, seen: Tensor, side: int, stride: int, padding: int = 0) -> Tensor:
    """Correlate each channel of a map with shifts of another, ``(C, k, k)``.

    Value (i, j) is the sum over batch and places (r, c) of ``seen[r, c] x[stride r + i - padding, stride c + j -
    padding]``: the weight gradient of a depthwise convolution, which is among the fastest of its operations.
    """
    channels = x.shape[1]
    weight = x.new_empty(channels, 1, side, side)
    found = torch.ops.aten.convolution_backward(
        seen, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], channels, [False, True, False]
    )
    weights: Tensor = found[1]
    return weights[:, 0]
