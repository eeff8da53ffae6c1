"""Sums over the patches that a convolution sees, sums of their products, and the gradients of both.

Mean and covariance of the input's patches tell BatchNorm's statistics of every linear branch (see `merged_branches`).
Each method here computes the sums in the cheapest way for one kind of convolution: pointwise, depthwise with a stride,
or any other, by unfolding. `lag_moments` holds the one for depthwise 3x3 convolutions. Shapes: G groups,
d = (input channels of a group) x k x k values a patch. Derived in docs/reparameterized-training.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "DepthwiseMoments",
    "MomentsMethod",
    "PatchGeometry",
    "PatchGradient",
    "PointwiseMoments",
    "UnfoldedMoments",
    "convolution_gradients",
    "correlation",
    "images_at_once",
    "wide",
]

_CHUNK_VALUES = 1 << 20
"""Values of a chunk: 4 MB in float32, so that it stays in a processor's cache."""
_SPLIT = 96
"""Channels from which the symmetric product is worth computing in parts."""
_PARTS = 3


@dataclass(frozen=True, slots=True)
class PatchGeometry:
    """Patches of ``kernel_size`` squared, over an input padded with ``kernel_size // 2`` zeros on each side.

    Attributes:
        kernel_size: Odd side of the kernel.
        stride: Step of the kernel.
        groups: Groups of the convolution.
    """

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


@dataclass(frozen=True, slots=True)
class PatchGradient:
    """Gradients of patches, folded back to the input.

    Attributes:
        of: Gives the gradient of some images ``(N, C, H, W)``, in the type of the coefficients.
        finish: Adds to the whole batch's gradient, in place, what `of` left out; takes that gradient and the input.
    """

    of: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor, Tensor], None] | None = None


class MomentsMethod(Protocol):
    """One way to compute sums over patches and their gradient."""

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the patches, ``(G, d)``, and their products, ``(G, d, d)``, in float32 or float64."""
        ...

    def gradient(self, constant: Tensor, linear: Tensor) -> PatchGradient:
        """Prepare to fold patches p that have the gradient ``constant + linear p``.

        Args:
            constant: ``(G, d)``.
            linear: ``(G, d, d)``, symmetric, of the same type.
        """
        ...


class PointwiseMoments:
    """Of a 1x1 convolution: products of the channels."""

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

    def gradient(self, constant: Tensor, linear: Tensor) -> PatchGradient:
        """Prepare a 1x1 convolution."""
        kernel = linear[0, :, :, None, None]
        return PatchGradient(lambda x: F.conv2d(x.to(kernel.dtype), kernel, constant[0]))


@dataclass(frozen=True, slots=True)
class UnfoldedMoments:
    """Of any convolution with "same" padding: the patches are made, a few images at a time."""

    geometry: PatchGeometry

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, C, H, W)`` to ``(G, d)`` and ``(G, d, d)``."""
        groups, area = self.geometry.groups, self.geometry.kernel_size**2
        size = x.shape[1] // groups * area
        total = torch.zeros(groups, size, dtype=torch.float64, device=x.device)
        products = torch.zeros(groups, size, size, dtype=torch.float64, device=x.device)
        for part in torch.split(x, images_at_once(x, copies=area / self.geometry.stride**2)):
            patches = self._patches(wide(part))
            total += patches.sum(dim=3).sum(dim=0)
            products += (patches @ patches.mT).sum(dim=0)
        return total, products

    def gradient(self, constant: Tensor, linear: Tensor) -> PatchGradient:
        """Prepare patches times a matrix, folded back."""
        side, stride = self.geometry.kernel_size, self.geometry.stride

        def of(x: Tensor) -> Tensor:
            columns = linear @ self._patches(x.to(linear.dtype))
            columns += constant[:, :, None]
            return F.fold(columns.flatten(1, 2), x.shape[2:], side, padding=side // 2, stride=stride)

        return PatchGradient(of)

    def _patches(self, x: Tensor) -> Tensor:
        """``(N, G, d, places)``."""
        geometry = self.geometry
        columns = F.unfold(x.contiguous(), geometry.kernel_size, padding=geometry.padding, stride=geometry.stride)
        return columns.view(len(x), geometry.groups, -1, columns.shape[2])


@dataclass(frozen=True, slots=True)
class DepthwiseMoments:
    """Of a depthwise convolution with "same" padding and any stride, tap by tap.

    Tap a of the patches is the padded input, shifted and thinned: a map of the output's size. Its products with all
    taps are the weight gradient of the depthwise convolution itself, with that map in the place of the output's
    gradient. The covariance's gradient is, for each tap, a depthwise convolution that is added at the tap's places.
    """

    geometry: PatchGeometry

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, C, H, W)`` to ``(C, d)`` and ``(C, d, d)`` with ``d = k * k``."""
        channels, taps = x.shape[1], self.geometry.kernel_size**2
        total = torch.zeros(channels, taps, dtype=torch.float64, device=x.device)
        products = torch.zeros(channels, taps, taps, dtype=torch.float64, device=x.device)
        size = [-(-length // self.geometry.stride) for length in x.shape[2:]]
        at_once = min(len(x), images_at_once(x))
        # One map a tap; where it looks past the border there are zeros, and they stay.
        maps = [wide(x[:0]).new_zeros(at_once, *size, channels).permute(0, 3, 1, 2) for _ in range(taps)]
        for part in torch.split(x, at_once):
            values = wide(part)
            for tap in range(taps):
                here, there = self._reach(tap, x.shape[2:])
                seen = maps[tap][: len(part)]
                seen[:, :, here[0], here[1]] = values[:, :, there[0], there[1]]
                total[:, tap] += seen.sum(dim=(0, 2, 3))
                products[:, tap] += correlation(values, seen, self.geometry).flatten(1)
        return total, (products + products.mT) / 2

    def gradient(self, constant: Tensor, linear: Tensor) -> PatchGradient:
        """Prepare a convolution for each tap, added where the tap saw the map."""
        side = self.geometry.kernel_size
        kernels = [kernel.reshape(-1, 1, side, side) for kernel in linear.unbind(dim=1)]
        return PatchGradient(partial(self._folded, [column.contiguous() for column in constant.unbind(dim=1)], kernels))

    def _folded(self, biases: Sequence[Tensor], kernels: Sequence[Tensor], x: Tensor) -> Tensor:
        values = x.to(kernels[0].dtype)
        found = torch.zeros_like(values)
        stride, padding = self.geometry.stride, self.geometry.padding
        for tap, (bias, kernel) in enumerate(zip(biases, kernels, strict=True)):
            here, there = self._reach(tap, x.shape[2:])
            at = found[:, :, there[0], there[1]]
            at += F.conv2d(values, kernel, bias, stride, padding, groups=x.shape[1])[:, :, here[0], here[1]]
        return found

    def _reach(self, tap: int, size: Sequence[int]) -> tuple[list[slice], list[slice]]:
        """Rows and columns of the output where a tap sees the map, and those of the map that it sees."""
        stride = self.geometry.stride
        here, there = [], []
        for offset, length in zip(divmod(tap, self.geometry.kernel_size), size, strict=True):
            shift = offset - self.geometry.padding
            first = max(0, -(shift // stride))
            end = min(max(first, (length - 1 - shift) // stride + 1), -(-length // stride))
            start = stride * first + shift
            here.append(slice(first, end))
            there.append(slice(start, start + stride * (end - first), stride))
        return here, there


def images_at_once(x: Tensor, copies: float = 1) -> int:
    """Choose how many images make a chunk that fits into the cache; all of them on a GPU.

    Args:
        x: ``(N, C, H, W)``.
        copies: Of the image's values that are alive at once.
    """
    if not x.is_cpu:
        return max(1, len(x))
    return max(1, int(_CHUNK_VALUES / max(1, copies * x[0].numel())))


def wide(x: Tensor) -> Tensor:
    """Convert less than float32 to float32."""
    return x if x.dtype == torch.float64 else x.float()


def correlation(x: Tensor, seen: Tensor, geometry: PatchGeometry) -> Tensor:
    """Correlate each channel of a map with shifts of another, ``(C, k, k)``.

    Value (i, j) is the sum over batch and places (r, c) of ``seen[r, c] x[stride r + i - padding, stride c + j -
    padding]``: the weight gradient of a depthwise convolution, which is among the fastest of its operations.
    """
    weight = x.new_empty(x.shape[1], 1, geometry.kernel_size, geometry.kernel_size)
    return _convolution_backward(seen, x, weight, geometry, [False, True, False])[1][:, 0]


def convolution_gradients(
    out_gradient: Tensor, x: Tensor, weight: Tensor, geometry: PatchGeometry, *, wanted: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Compute the gradients of a convolution's input, if `wanted`, of its kernel and of its bias."""
    # The kernel's gradient reads all that the bias's needs. In less than float32 the bias's would be rounded.
    whole = out_gradient.dtype in (torch.float32, torch.float64)
    found = _convolution_backward(out_gradient, x, weight, geometry, [wanted, True, whole])
    bias = found[2] if whole else out_gradient.sum(dim=(0, 2, 3), dtype=torch.float32)
    return found[0] if wanted else None, found[1], bias


def _convolution_backward(
    out_gradient: Tensor, x: Tensor, weight: Tensor, geometry: PatchGeometry, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding = [geometry.stride] * 2, [geometry.padding] * 2
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        out_gradient, x, weight, [len(weight)], stride, padding, [1, 1], False, [0, 0], geometry.groups, wanted
    )
    return found


def _add_products(products: Tensor, x: Tensor) -> None:
    """Add ``X^T X``, a place a row; of many channels little more than the upper triangle."""
    channels = x.shape[1]
    if channels < _SPLIT and x.is_cpu and x.dtype == torch.float32:
        # A convolution's weight gradient is this product, and oneDNN's is faster for few channels.
        weight = x.new_empty(channels, channels, 1, 1)
        products += _convolution_backward(x, x, weight, PatchGeometry(1, 1, 1), [False, True, False])[1][:, :, 0, 0]
        return
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    step = channels if channels < _SPLIT else -(-channels // _PARTS)
    for start in range(0, channels, step):
        products[start : start + step, start:].addmm_(rows[:, start : start + step].T, rows[:, start:])
