"""Weights as int8: a scale for each output channel, and no sum that saturates."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FULL_RANGE", "SATURATION_FREE", "IntegerWeights", "WeightLimits", "in_memory_order", "row_scales"]

Array = NDArray[np.float64]

_LARGEST_BIAS = 2.0**30
"""Half of int32's range; the other half is for the sums."""


@dataclass(frozen=True, slots=True)
class WeightLimits:
    """What a processor's multiply-add bears.

    Attributes:
        largest: Largest magnitude of a weight.
        largest_pair: Largest sum of two neighbouring weights of one sign, or None where sums are held in 32 bits.
            x86 without VNNI multiplies unsigned bytes with signed ones in pairs and clips the sum to 16 bits
            (VPMADDUBSW): with activations of 255, two weights may sum to 128, for 255 * 128 < 2**15. Taking one bit
            from all weights ("reduced range") ensures that too, but coarsens every weight for the sake of few.
    """

    largest: int = 127
    largest_pair: int | None = None


FULL_RANGE = WeightLimits()
SATURATION_FREE = WeightLimits(largest_pair=128)


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """Weights of a Conv or Gemm on the integer grid.

    Attributes:
        integers: ``(O, I, ...)`` int8.
        scales: ``(O,)`` float32, real weight = integer * scale.
        bias: ``(O,)`` float64, real.
    """

    integers: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: Array

    def integer_bias(self, input_scale: float) -> NDArray[np.int32]:
        """Bias in the unit of the sums, input scale times weight scale."""
        return np.rint(self.bias / (input_scale * self.scales.astype(np.float64))).astype(np.int32)

    def real(self) -> Array:
        """``(O, I, ...)`` the weights that the integers stand for."""
        shape = (-1,) + (1,) * (self.integers.ndim - 1)
        return self.integers.astype(np.float64) * self.scales.reshape(shape).astype(np.float64)


def in_memory_order(weight: Array) -> Array:
    """``(O, K)`` as kernels multiply: channels last, so that neighbouring columns are neighbours in a register."""
    return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)


def row_scales(weight: Array, bias: Array, input_scale: float, limits: WeightLimits) -> NDArray[np.float32]:
    """Finest scale of each output channel that the limits and an int32 bias allow.

    Args:
        weight: ``(O, I, ...)`` real.
        bias: ``(O,)`` real.
        input_scale: Of the activation that the weights meet.
        limits: Of the processor.
    """
    rows = in_memory_order(weight)
    scales = np.abs(rows).max(axis=1) / limits.largest
    if limits.largest_pair is not None:
        # Rounding may add half a step to either weight of a pair.
        scales = np.maximum(scales, _largest_pairs(rows) / (limits.largest_pair - 1))
    scales = np.maximum(scales, np.abs(bias) / (input_scale * _LARGEST_BIAS))
    return np.where(scales > 0, scales, 1).astype(np.float32)


def _largest_pairs(rows: Array) -> Array:
    """``(O,)`` largest sum of the positive parts, or of the negative parts, of two neighbours."""
    even = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    pairs = even.reshape(len(rows), -1, 2)
    positive = np.maximum(pairs, 0).sum(axis=2).max(axis=1)
    result: Array = np.maximum(positive, np.maximum(-pairs, 0).sum(axis=2).max(axis=1))
    return result
