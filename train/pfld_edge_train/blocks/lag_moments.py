"""Moments of the patches that a depthwise 3x3 convolution sees, without making the patches.

The nine values of a patch are one map, shifted: the product of taps a and b, summed over all places, is the map's
correlation with itself at lag b - a. Of the 81 products of a channel only 13 correlations differ, but for the border:
what lies outside the map is zero, and tap a never sees the first row if it looks down by one, nor the last if it looks
up. A row is missing in the product of a and b only where both look away from it (else the other factor lies outside
anyway), so

    S[a, b] = F[b - a] - (both look down)  R_first[b - a] - (both look up)   R_last[b - a]
                       - (both look right) C_first[b - a] - (both look left) C_last[b - a] + the corner counted twice

with F the correlation of the map, R and C those of single rows and columns. See docs/reparameterized-training.md.
"""

from functools import cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["LagMoments"]

_TAPS = tuple(product((-1, 0, 1), repeat=2))
# One of each pair of opposite lags: rows up to two above, or the same row and columns to the left.
_LAGS = (*product((-2, -1), range(-2, 3)), (0, -2), (0, -1), (0, 0))
# Rows, columns (first, last) at lags 0 to 2 along them; the four corners.
_STRIPS = tuple(product((0, 1), (0, 1), (0, 1, 2)))
_CORNERS = tuple(product((0, 1), repeat=2))
_FEATURES = len(_LAGS) + len(_STRIPS) + len(_CORNERS)


class LagMoments(torch.autograd.Function):
    """Sums of patches and of their products, a channel at a time; its gradient is one depthwise 5x5 convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - torch's own interface
        """Map ``(N, C, H, W)`` to ``(C, 9)`` and ``(C, 9, 9)``, both float64."""
        ctx.save_for_backward(x)
        wide = x if x.dtype == torch.float64 else x.float()
        lags = _correlations(wide)
        strips = [_along(strip) for strip in _borders(wide)]
        corners = _corners(wide)
        features = torch.cat([lags, *strips, corners.double().square().sum(dim=0)], dim=1)
        products = features @ _product_map().to(features.device).T
        sums = [wide.sum(dim=(2, 3)).double().sum(dim=0)[:, None]]
        sums += [strip.double().sum(dim=(0, 2))[:, None] for strip in _borders(wide)]
        sums.append(corners.double().sum(dim=0))
        total = torch.cat(sums, dim=1) @ _sum_map().to(features.device).T
        return total, products.view(-1, 9, 9)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401 - torch's own interface
        """Give the gradient of x."""
        (x,) = ctx.saved_tensors
        wide = x if x.dtype == torch.float64 else x.float()
        total, products = gradients
        kernels, strips, corners = _coefficients(products, wide.dtype)
        sums = (total @ _sum_map().to(total.device)).to(wide.dtype)
        found = F.conv2d(wide, kernels, sums[:, 0].contiguous(), padding=2, groups=x.shape[1])
        for i, (strip, place) in enumerate(zip(_borders(wide), _borders(found), strict=True)):
            place += _strip_gradient(strip, strips[:, i]) + sums[:, 1 + i, None]
        for i, (vertical, horizontal) in enumerate(_CORNERS):
            place = found[:, :, -vertical, -horizontal]
            place += 2 * corners[:, i] * wide[:, :, -vertical, -horizontal] + sums[:, 5 + i]
        return found.to(x.dtype)


def _correlations(x: Tensor) -> Tensor:
    """The map's correlations with itself at `_LAGS`, ``(C, 13)`` float64.

    A depthwise convolution's weight gradient is a correlation; x takes the part of the output's gradient, shifted.
    """
    channels = x.shape[1]
    framed = F.pad(x, (1, 1, 1, 1))
    weight = x.new_empty(channels, 1, 3, 3)
    quadrants = []
    for padding in ((0, 2, 0, 2), (2, 0, 0, 2)):
        # Frames and shifts are made here: oneDNN's kernel for wider padding than the usual 1 writes out of bounds.
        shifted = F.pad(x, padding)
        _, found, _ = torch.ops.aten.convolution_backward(
            shifted, framed, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], channels, [False, True, False]
        )
        quadrants.append(found[:, 0].double())
    left, right = quadrants  # lags -2..0 down by -2..0 and by 0..2 across
    above = torch.cat([left[:, :2], right[:, :2, 1:]], dim=2)
    return torch.cat([above.flatten(1), left[:, 2]], dim=1)


def _borders(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of the first and last row, ``(N, C, W)``, and of the first and last column, ``(N, C, H)``."""
    return x[:, :, 0], x[:, :, -1], x[:, :, :, 0], x[:, :, :, -1]


def _corners(x: Tensor) -> Tensor:
    """The four corners, ``(N, C, 4)``, in the order of `_CORNERS`."""
    return torch.stack([x[:, :, -vertical, -horizontal] for vertical, horizontal in _CORNERS], dim=2)


def _along(strip: Tensor) -> Tensor:
    """A strip's correlation with itself at lags 0 to 2, ``(C, 3)`` float64."""
    wide = strip.double()
    found = []
    for lag in range(3):
        length = max(0, wide.shape[2] - lag)
        found.append((wide[:, :, :length] * wide[:, :, lag:]).sum(dim=(0, 2)))
    return torch.stack(found, dim=1)


def _strip_gradient(strip: Tensor, coefficients: Tensor) -> Tensor:
    """Gradient of a strip from those of its three correlations, ``(C, 3)``."""
    padded = F.pad(strip, (2, 2))
    length = strip.shape[2]
    found = 2 * coefficients[:, :1] * strip
    for lag in (1, 2):
        both = padded[:, :, 2 + lag : 2 + lag + length] + padded[:, :, 2 - lag : 2 - lag + length]
        found = found + coefficients[:, lag, None] * both
    return found


def _coefficients(products: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of the products: 5x5 kernels ``(C, 1, 5, 5)``, strips ``(C, 4, 3)`` and corners ``(C, 4)``."""
    found = (products.flatten(1) @ _product_map().to(products.device)).to(dtype)
    kernels = found.new_zeros(len(found), 1, 5, 5)
    for i, (down, across) in enumerate(_LAGS):
        # A correlation's factors trade places at the opposite lag; at lag zero both are the same value.
        kernels[:, 0, 2 + down, 2 + across] += found[:, i]
        kernels[:, 0, 2 - down, 2 - across] += found[:, i]
    strips = found[:, len(_LAGS) : len(_LAGS) + len(_STRIPS)].view(-1, 4, 3)
    return kernels, strips, found[:, -len(_CORNERS) :]


@cache
def _product_map() -> Tensor:
    """``(81, 29)``: each product of two taps as a sum of correlations of map, strips and corners."""
    table = torch.zeros(9, 9, _FEATURES, dtype=torch.float64)
    for (i, a), (j, b) in product(enumerate(_TAPS), repeat=2):
        lag = (b[0] - a[0], b[1] - a[1])
        table[i, j, _LAGS.index(lag if lag in _LAGS else (-lag[0], -lag[1]))] = 1
        # Whether both taps look away from the first (0) or the last (1) row or column.
        away = [{1: 0, -1: 1}.get(a[axis]) if a[axis] == b[axis] else None for axis in (0, 1)]
        for axis, which in enumerate(away):
            if which is not None:
                table[i, j, len(_LAGS) + _STRIPS.index((axis, which, abs(lag[1 - axis])))] = -1
        if away[0] is not None and away[1] is not None:
            table[i, j, len(_LAGS) + len(_STRIPS) + _CORNERS.index((away[0], away[1]))] = 1
    return table.view(81, _FEATURES)


@cache
def _sum_map() -> Tensor:
    """``(9, 9)``: each tap's sum from those of map, first and last row, first and last column, and corners."""
    table = torch.zeros(9, 9, dtype=torch.float64)
    table[:, 0] = 1
    for i, tap in enumerate(_TAPS):
        away = [{1: 0, -1: 1}.get(step) for step in tap]
        for axis, which in enumerate(away):
            if which is not None:
                table[i, 1 + 2 * axis + which] = -1
        if away[0] is not None and away[1] is not None:
            table[i, 5 + _CORNERS.index((away[0], away[1]))] = 1
    return table
