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

from collections.abc import Sequence
from functools import cache, partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from pfld_edge_train.blocks.patch_moments import PatchGeometry, PatchGradient, correlation, images_at_once, wide

__all__ = ["LagMoments"]

_TAPS = tuple(product((-1, 0, 1), repeat=2))
"""Rows and columns that each value of a patch lies from the middle."""
_LAGS = (*product((0,), range(3)), *product((1, 2), range(-2, 3)))
"""One of each pair of opposite lags, rows and columns."""
_BORDERS = tuple(product((0, 1), (0, 1)))
"""Axis (0 for a row) and which one (0 for the first, 1 for the last)."""
_CORNERS = tuple(product((0, 1), (0, 1)))
"""First or last row, first or last column."""
_LOOKS_AWAY = {1: 0, -1: 1}
"""Which row or column a tap never sees that lies so far from the middle."""


@cache
def _product_table(device: torch.device) -> Tensor:
    """``(81, 29)`` float64: each product of two taps as a sum of correlations.

    These are those of the map at `_LAGS`, those of the first and the last row at lags 0 to 2, those of the columns, and
    the four corners' squares.
    """
    table = torch.zeros(9, 9, len(_LAGS) + 3 * len(_BORDERS) + len(_CORNERS), dtype=torch.float64)
    for (i, a), (j, b) in product(enumerate(_TAPS), repeat=2):
        lag = (b[0] - a[0], b[1] - a[1])
        table[i, j, _LAGS.index(lag if lag in _LAGS else (-lag[0], -lag[1]))] = 1
        away = [_LOOKS_AWAY.get(a[axis]) if a[axis] == b[axis] else None for axis in (0, 1)]
        for axis, which in enumerate(away):
            if which is not None:
                table[i, j, len(_LAGS) + 3 * _BORDERS.index((axis, which)) + abs(lag[1 - axis])] = -1
        if away[0] is not None and away[1] is not None:
            table[i, j, len(_LAGS) + 3 * len(_BORDERS) + _CORNERS.index((away[0], away[1]))] = 1
    return table.flatten(0, 1).to(device)


@cache
def _total_table(device: torch.device) -> Tensor:
    """``(9, 9)`` float64: each tap's sum from those of map, first and last row, first and last column, and corners."""
    table = torch.zeros(9, 1 + len(_BORDERS) + len(_CORNERS), dtype=torch.float64)
    table[:, 0] = 1
    for i, tap in enumerate(_TAPS):
        away = [_LOOKS_AWAY.get(step) for step in tap]
        for axis, which in enumerate(away):
            if which is not None:
                table[i, 1 + _BORDERS.index((axis, which))] = -1
        if away[0] is not None and away[1] is not None:
            table[i, 1 + len(_BORDERS) + _CORNERS.index((away[0], away[1]))] = 1
    return table.to(device)


class LagMoments:
    """Of a depthwise 3x3 convolution with stride 1, over maps of at least 2x2.

    The gradient is one depthwise 5x5 convolution, and what is too much in it along the border.
    """

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, C, H, W)`` to ``(C, 9)`` and ``(C, 9, 9)``."""
        lags, total = _correlations(x)
        rows, columns = wide(_ends(x, 2)), wide(_ends(x, 3))
        corners = _ends(rows, 3)
        features = [_along(rows, 3), _along(columns, 2), corners.square().sum(dim=0).flatten(1)]
        totals = [rows.sum(dim=(0, 3)), columns.sum(dim=(0, 2)), corners.sum(dim=0).flatten(1)]
        products = torch.cat([lags, torch.cat(features, dim=1).double()], dim=1) @ _product_table(x.device).T
        total = torch.cat([total, torch.cat(totals, dim=1).double()], dim=1) @ _total_table(x.device).T
        return total, products.view(-1, 9, 9)

    def gradient(self, constant: Tensor, linear: Tensor) -> PatchGradient:
        """Prepare one depthwise 5x5 convolution, and corrections of the border's rows, columns and corners."""
        table, sums = (table(linear.device).to(linear.dtype) for table in (_product_table, _total_table))
        lags, *borders = torch.split(linear.flatten(1) @ table / 2, [len(_LAGS), 6, 6, 4], dim=1)
        everywhere, *biases = torch.split(constant @ sums, [1, 2, 2, 4], dim=1)
        kernels, bias = _symmetric(lags), everywhere[:, 0].contiguous()

        def of(x: Tensor) -> Tensor:
            return F.conv2d(x.to(kernels.dtype), kernels, bias, padding=2, groups=x.shape[1])

        return PatchGradient(of, partial(_correct_border, borders, biases))


def _correct_border(borders: Sequence[Tensor], biases: Sequence[Tensor], found: Tensor, x: Tensor) -> None:
    """Subtract in place what the 5x5 convolution has too much of along the border.

    Args:
        borders: Coefficients of rows ``(C, 6)``, columns ``(C, 6)`` and corners ``(C, 4)``.
        biases: Constants of rows ``(C, 2)``, columns ``(C, 2)`` and corners ``(C, 4)``.
        found: The gradient.
        x: The input.
    """
    for dim in (2, 3):
        strips = _ends(found, dim)
        strips += _strip_gradient(_ends(x, dim), dim, borders[dim - 2], biases[dim - 2])
    factors, constants = (values.view(-1, 2, 2) for values in (borders[2], biases[2]))
    places = _ends(_ends(found, 2), 3)
    places += torch.addcmul(constants, factors, _ends(_ends(x, 2), 3).to(factors.dtype), value=2)


def _correlations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Correlate the map with itself.

    The map lies in a frame of zeros, channels last. Going on by a row's length and one place more is then a step down
    and to the right, whatever the place; so a view of the same memory that starts later is the shifted map, and two 3x3
    correlations give all lags of at most two rows and columns.

    Returns:
        Correlations at `_LAGS`, ``(C, 13)``, and the sum of the map, ``(C, 1)``, both float64.
    """
    count, channels, height, width = x.shape
    geometry = PatchGeometry(3, 1, channels)
    at_once = min(count, images_at_once(x))
    rows, columns = height + 2, width + 2
    memory = wide(x[:0]).new_zeros(at_once * rows * columns + columns + 1, channels)
    total = torch.zeros(channels, 1, dtype=torch.float64, device=x.device)
    found = torch.zeros(2, channels, 3, 3, dtype=torch.float64, device=x.device)

    def framed(images: int, start: int) -> Tensor:
        places = memory[start : start + images * rows * columns]
        return places.view(images, rows, columns, channels).permute(0, 3, 1, 2)

    for part in torch.split(x, at_once):
        here = framed(len(part), 0)
        here[:, :, 1:-1, 1:-1] = part
        total[:, 0] += memory[: len(part) * rows * columns].sum(dim=0)
        for i, start in enumerate((columns - 1, columns + 1)):
            found[i] += correlation(framed(len(part), start), here, geometry)
    left, right = found  # lags 0 to 2 down; -2 to 0 and 0 to 2 across
    below = torch.cat([left[:, 1:], right[:, 1:, 1:]], dim=2)
    return torch.cat([right[:, 0], below.flatten(1)], dim=1), total


def _ends(x: Tensor, dim: int) -> Tensor:
    """View the first and the last row (dim 2) or column (dim 3)."""
    step = x.shape[dim] - 1
    return x[:, :, ::step] if dim == 2 else x[:, :, :, ::step]


def _along(strips: Tensor, dim: int) -> Tensor:
    """Correlations of two rows or columns with themselves at lags 0 to 2, ``(C, 6)``."""
    length = strips.shape[dim]
    found = []
    for lag in range(3):
        size = max(0, length - lag)
        product = strips.narrow(dim, 0, size) * strips.narrow(dim, length - size, size)
        found.append(product.sum(dim=(0, dim)))
    return torch.stack(found, dim=2).flatten(1)


def _strip_gradient(strips: Tensor, dim: int, coefficients: Tensor, constants: Tensor) -> Tensor:
    """Gradient of two rows or columns, ``(C, 6)`` and ``(C, 2)`` from those of their correlations and sums."""
    lines = strips.to(coefficients.dtype).movedim(dim, 2).flatten(1, 2)[:, :, None]
    kernels = coefficients.reshape(-1, 3)[:, [2, 1, 0, 1, 2]]
    kernels[:, 2] *= 2
    found = F.conv2d(lines, kernels[:, None, None], constants.flatten(), padding=(0, 2), groups=lines.shape[1])
    return torch.unflatten(found[:, :, 0], 1, (-1, 2)).movedim(2, dim)


def _symmetric(coefficients: Tensor) -> Tensor:
    """5x5 kernels ``(C, 1, 5, 5)``: a correlation's factors trade places at the opposite lag."""
    kernels = coefficients.new_zeros(len(coefficients), 25)
    places = [5 * (2 + down) + 2 + across for down, across in _LAGS]
    kernels[:, places] = coefficients
    return (kernels + kernels.flip(1)).view(-1, 1, 5, 5)
