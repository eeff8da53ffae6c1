"""Mean and covariance of the input patches of a convolution, and the gradient of both.

They give BatchNorm's statistics of every linear branch (see `merged_branches`). Shapes: G groups, d = (input channels
of a group) x k x k values in a patch. Derived in docs/reparameterized-training.md.

In general the patches are unfolded. A 1x1 convolution needs only products of channels. In a depthwise 3x3 convolution
of stride 1 each value of a patch (tap) is the input, shifted: the product of taps a and b, summed over all places of
the plane, is the map's correlation with itself at lag b - a, one of 25. Subtracted are the places just outside of the
map, whose patches see its first or last row or column; corners, which see both, are added again.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_VALUES = 1 << 20
"""Values of a chunk of images: 4 MB in float32, which stays in a processor's cache."""
_SMALL_PATCH = 64
"""Up to this patch size float64 moments cost next to nothing."""
_TAPS = tuple(product((0, 1, 2), repeat=2))
_LAGS = torch.tensor([[5 * (2 + b[0] - a[0]) + 2 + b[1] - a[1] for b in _TAPS] for a in _TAPS])
"""``(9, 9)``: index of each pair of taps among the 5x5 lags."""
_LINE_LAGS = torch.tensor([[2 + b - a for b in range(3)] for a in range(3)])
"""``(3, 3)``: index of each pair of taps in a line among the 5 lags."""
_BORDERS = ((2, 0, [6, 7, 8]), (2, -1, [0, 1, 2]), (3, 0, [2, 5, 8]), (3, -1, [0, 3, 6]))
"""Axis and index of a border line, and the taps that see it from outside."""
_CORNERS = ((0, 0, 8), (0, -1, 6), (-1, 0, 2), (-1, -1, 0))
"""Row, column, and the tap that sees it from outside."""


@dataclass(frozen=True, slots=True)
class PatchGeometry:
    """Patches of an odd ``kernel_size`` squared, over an input padded with ``kernel_size // 2`` zeros on each side."""

    kernel_size: int
    stride: int
    groups: int

    @property
    def padding(self) -> int:
        """Zeros on each side."""
        return self.kernel_size // 2

    def places(self, x: Tensor) -> int:
        """Count the patches of a batch ``(N, C, H, W)``."""
        height, width = (-(-side // self.stride) for side in x.shape[2:])
        return x.shape[0] * height * width

    def method(self, x: Tensor) -> Literal["pointwise", "lags", "unfolded"]:
        """Choose the cheapest way to the moments of ``(N, C, H, W)``."""
        if self.groups == 1 and self.kernel_size == 1:
            return "pointwise"
        return "lags" if (self.groups, self.kernel_size, self.stride) == (x.shape[1], 3, 1) else "unfolded"


def _chunks(x: Tensor, geometry: PatchGeometry) -> tuple[Tensor, ...]:
    """Split ``(N, C, H, W)`` into groups of images that fit into the cache; not on a GPU."""
    if not x.is_cpu:
        return (x,)
    copies = geometry.kernel_size**2 / geometry.stride**2 if geometry.method(x) == "unfolded" else 1
    return torch.split(x, max(1, int(_CHUNK_VALUES / max(1, copies * x[0].numel()))))


def patch_moments(x: Tensor, geometry: PatchGeometry) -> tuple[Tensor, Tensor]:
    """Mean ``(G, d)`` and covariance ``(G, d, d)`` of the patches of ``(N, C, H, W)``; float64 for small ones."""
    total = products = torch.zeros((), dtype=torch.float64, device=x.device)
    for part in _chunks(x, geometry):
        sums = _sums(part if part.dtype == torch.float64 else part.float(), geometry)
        total, products = total + sums[0], products + sums[1]
    count = geometry.places(x)
    exact = x.dtype == torch.float64 or total.shape[1] <= _SMALL_PATCH
    dtype = torch.float64 if exact else torch.float32
    mean = total.to(dtype) / count
    return mean, torch.baddbmm(products.to(dtype), mean[:, :, None], mean[:, None], beta=1 / count, alpha=-1)


def _sums(x: Tensor, geometry: PatchGeometry) -> tuple[Tensor, Tensor]:
    """Sums of the patches ``(G, d)`` and of their products ``(G, d, d)``."""
    method = geometry.method(x)
    if method == "pointwise":
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        return rows.sum(dim=0)[None], (rows.T @ rows)[None]
    if method == "unfolded":
        patches = _unfolded(x, geometry)
        return patches.sum(dim=3).sum(dim=0), (patches @ patches.mT).sum(dim=0)
    products = _self_correlation(x).flatten(1).double()[:, _LAGS.to(x.device)]
    total = x.sum(dim=(0, 2, 3)).double()[:, None].repeat(1, 9)
    for dim, place, taps in _BORDERS:
        line = x.select(dim, place)
        total[:, taps] -= line.sum(dim=(0, 2))[:, None]
        along = [(line[:, :, : line.shape[2] - lag] * line[:, :, lag:]).sum(dim=(0, 2)) for lag in range(3)]
        products[:, torch.tensor(taps)[:, None], taps] -= torch.stack(along, dim=1)[:, (_LINE_LAGS - 2).abs()]
    for row, column, tap in _CORNERS:
        total[:, tap] += x[:, :, row, column].sum(dim=0)
        products[:, tap, tap] += x[:, :, row, column].square().sum(dim=0)
    return total, products


def patch_gradient(x: Tensor, geometry: PatchGeometry, constant: Tensor, linear: Tensor) -> Tensor:
    """Fold patches p that have the gradient ``constant + linear p`` back to the gradient of x, ``(N, C, H, W)``.

    `constant` is ``(G, d)``, `linear` ``(G, d, d)`` and symmetric.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    constant, linear, found = constant.to(dtype), linear.to(dtype), torch.empty_like(x)
    for part, into in zip(_chunks(x, geometry), _chunks(found, geometry), strict=True):
        into.copy_(_gradient(part, geometry, constant, linear))
    return found


def _gradient(x: Tensor, geometry: PatchGeometry, constant: Tensor, linear: Tensor) -> Tensor:
    x, side = x.to(linear.dtype), geometry.kernel_size
    method = geometry.method(x)
    if method == "pointwise":
        return F.conv2d(x, linear[0, :, :, None, None], constant[0])
    if method == "unfolded":
        patches = linear @ _unfolded(x, geometry) + constant[:, :, None]
        return F.fold(patches.flatten(1, 2), x.shape[2:], side, padding=geometry.padding, stride=geometry.stride)
    kernels = linear.new_zeros(len(linear), 25).index_add_(1, _LAGS.flatten().to(x.device), linear.flatten(1))
    found = F.conv2d(x, kernels.view(-1, 1, 5, 5), constant.sum(dim=1), padding=2, groups=len(linear))
    for dim, place, taps in _BORDERS:
        pairs = linear[:, taps][:, :, taps].flatten(1)
        kernels = linear.new_zeros(len(linear), 1, 5).index_add_(2, _LINE_LAGS.flatten().to(x.device), pairs[:, None])
        bias = constant[:, taps].sum(dim=1)
        line = F.conv1d(x.select(dim, place), kernels, bias, padding=2, groups=len(linear))
        found.select(dim, place).sub_(line)
    for row, column, tap in _CORNERS:
        found[:, :, row, column] += constant[:, tap] + linear[:, tap, tap] * x[:, :, row, column]
    return found


def _unfolded(x: Tensor, geometry: PatchGeometry) -> Tensor:
    """``(N, G, d, places)``."""
    columns = F.unfold(x.contiguous(), geometry.kernel_size, padding=geometry.padding, stride=geometry.stride)
    return columns.view(len(x), geometry.groups, -1, columns.shape[2])


def _self_correlation(x: Tensor) -> Tensor:
    """Correlate each channel with itself, ``(C, 5, 5)``: a depthwise convolution's weight gradient, of its input."""
    weight = x.new_empty(x.shape[1], 1, 5, 5)
    found: Tensor = torch.ops.aten.convolution_backward(
        x, x, weight, None, [1, 1], [2, 2], [1, 1], False, [0, 0], x.shape[1], [False, True, False]
    )[1]
    return found[:, 0]
