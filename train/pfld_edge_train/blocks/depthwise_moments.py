"""Moments of the patches that a depthwise convolution sees, tap by tap.

Tap a of the patches is the padded input, shifted and thinned: a map of the output's size. Its products with all taps
are the weight gradient of the depthwise convolution itself, with that map in the place of the output's gradient; and
what the covariance's gradient gives back is, a tap at a time, a depthwise convolution that is added at the tap's
places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pfld_edge_train.blocks.convolution_gradients import weight_gradient
from pfld_edge_train.blocks.patch_geometry import PatchGeometry, images_at_once
from pfld_edge_train.blocks.pointwise_moments import wide

__all__ = ["DepthwiseGradient", "DepthwiseMoments", "correlation"]


class DepthwiseMoments:
    """Of a depthwise convolution with "same" padding and any stride."""

    def __init__(self, geometry: PatchGeometry) -> None:
        """Take the convolution's geometry."""
        self.geometry = geometry

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, C, H, W)`` to ``(C, d)`` and ``(C, d, d)`` with ``d = k * k``."""
        channels, side = x.shape[1], self.geometry.kernel_size
        total = torch.zeros(channels, side**2, dtype=torch.float64, device=x.device)
        products = torch.zeros(channels, side**2, side**2, dtype=torch.float64, device=x.device)
        size = [-(-length // self.geometry.stride) for length in x.shape[2:]]
        at_once = min(len(x), images_at_once(x))
        # What a tap sees, one after another; where it looks past the border there are zeros, and they stay.
        maps = [wide(x[:0]).new_zeros(at_once, *size, channels).permute(0, 3, 1, 2) for _ in range(side**2)]
        for part in torch.split(x, at_once):
            values = wide(part)
            for tap in range(side**2):
                here, there = _reach(self.geometry, tap, x.shape[2:])
                seen = maps[tap][: len(part)]
                seen[:, :, here[0], here[1]] = values[:, :, there[0], there[1]]
                total[:, tap] += seen.sum(dim=(0, 2, 3))
                products[:, tap] += correlation(values, seen, self.geometry).flatten(1)
        return total, (products + products.mT) / 2

    def gradient(self, constant: Tensor, linear: Tensor) -> "DepthwiseGradient":
        """Prepare ``linear P + constant``."""
        side = self.geometry.kernel_size
        kernels = [kernel.reshape(-1, 1, side, side) for kernel in linear.unbind(dim=1)]
        return DepthwiseGradient(self.geometry, [column.contiguous() for column in constant.unbind(dim=1)], kernels)


@dataclass(frozen=True, slots=True)
class DepthwiseGradient:
    """For each tap a convolution, that is added where the tap saw the map.

    Attributes:
        geometry: Of the convolution.
        biases: ``(C)`` for each tap.
        kernels: ``(C, 1, k, k)`` for each tap.
    """

    geometry: PatchGeometry
    biases: list[Tensor]
    kernels: list[Tensor]

    def of(self, x: Tensor) -> Tensor:
        """Give the gradient of some images."""
        values = x.to(self.kernels[0].dtype)
        found = torch.zeros_like(values)
        stride, padding = self.geometry.stride, self.geometry.padding
        for tap, (bias, kernel) in enumerate(zip(self.biases, self.kernels, strict=True)):
            here, there = _reach(self.geometry, tap, x.shape[2:])
            at = found[:, :, there[0], there[1]]
            at += F.conv2d(values, kernel, bias, stride, padding, groups=x.shape[1])[:, :, here[0], here[1]]
        return found

    def finish(self, found: Tensor, x: Tensor) -> None:
        """Nothing is left."""


def _reach(geometry: PatchGeometry, tap: int, size: Sequence[int]) -> tuple[list[slice], list[slice]]:
    """From which rows and columns of the output a tap sees the map, and which of the map it sees."""
    here, there = [], []
    for offset, length in zip(divmod(tap, geometry.kernel_size), size, strict=True):
        shift = offset - geometry.padding
        first = max(0, -(shift // geometry.stride))
        end = max(first, (length - 1 - shift) // geometry.stride + 1)
        end = min(end, -(-length // geometry.stride))
        start = geometry.stride * first + shift
        here.append(slice(first, end))
        there.append(slice(start, start + geometry.stride * (end - first), geometry.stride))
    return here, there


def correlation(x: Tensor, seen: Tensor, geometry: PatchGeometry) -> Tensor:
    """Correlate each channel of a map with shifts of another, ``(C, k, k)``.

    Value (i, j) is the sum over batch and places (r, c) of ``seen[r, c] x[stride r + i - padding, stride c + j -
    padding]``: the weight gradient of a depthwise convolution, which is among the fastest of its operations.
    """
    weight = x.new_empty(x.shape[1], 1, geometry.kernel_size, geometry.kernel_size)
    return weight_gradient(seen, x, weight, geometry)[:, 0]
