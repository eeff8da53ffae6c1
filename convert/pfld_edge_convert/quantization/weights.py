"""Integer weights: a scale for each output channel, and rounding to nearest or with error feedback (GPTQ).

Convolutions and matrix products get int8 weights with zero points of 0. `WeightLimits` bounds them to what a
processor's multiply-add sums without saturating.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LARGEST_BIAS = 2.0**30
"""Half of int32's range; the other half is for the sums."""

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Scales of weights that weight decay left below 1e-42 would be 0 in float32."""


@dataclass(frozen=True, slots=True)
class WeightLimits:
    """Largest weights that a processor's multiply-add takes.

    Attributes:
        largest: Largest magnitude of a weight.
        largest_pair: Largest sum of two neighbouring weights of one sign, or None where sums are held in 32 bits.
            x86 without VNNI multiplies unsigned with signed bytes in pairs and clips the sum to 16 bits (VPMADDUBSW):
            with activations of 255, two weights may sum to 128, for 255 * 128 < 2**15. Halving all weights ("reduced
            range") ensures that too, but coarsens every weight for the sake of few.
    """

    largest: int = 127
    largest_pair: int | None = None


FULL_RANGE = WeightLimits()
SATURATION_FREE = WeightLimits(largest_pair=128)


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """Quantized weights of a Conv or Gemm.

    Attributes:
        integers: ``(O, I, ...)`` int8.
        scales: ``(O,)`` float32, real weight = integer * scale.
        bias: ``(O,)`` float64, real.
    """

    integers: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: Array

    def integer_bias(self, input_scale: float) -> NDArray[np.int32]:
        """Bias in units of the accumulator, input scale times weight scale."""
        return np.rint(self.bias / (input_scale * self.scales.astype(np.float64))).astype(np.int32)

    def real(self) -> Array:
        """``(O, I, ...)`` dequantized weights."""
        shape = (-1,) + (1,) * (self.integers.ndim - 1)
        return self.integers.astype(np.float64) * self.scales.reshape(shape).astype(np.float64)


def in_memory_order(weight: Array) -> Array:
    """``(O, K)`` in the order in which kernels multiply, channels last."""
    return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)


def round_nearest(weight: Array, bias: Array, input_scale: float, limits: WeightLimits) -> IntegerWeights:
    """Round each weight by itself.

    Args:
        weight: ``(O, I, ...)`` real.
        bias: ``(O,)`` real.
        input_scale: Scale of the layer's input.
        limits: Of the processor.
    """
    scales = _row_scales(weight, bias, input_scale, limits)
    shape = (-1,) + (1,) * (weight.ndim - 1)
    integers = np.rint(weight / scales.reshape(shape)).clip(-limits.largest, limits.largest)
    return IntegerWeights(integers.astype(np.int8), scales, bias)


def round_with_feedback(
    weight: Array, bias: Array, input_scale: float, limits: WeightLimits, moments: Array, damping: float = 0.01
) -> IntegerWeights:
    """Round one column after the other, and correct the remaining columns for the error.

    Optimal Brain Quantization in fixed order, as in GPTQ (Frantar et al., arXiv 2210.17323, section 3).

    Args:
        weight: ``(O, I, ...)`` real; for a depthwise convolution ``(C, 1, kh, kw)``.
        bias: ``(O,)`` real.
        input_scale: Scale of the layer's input.
        limits: Of the processor.
        moments: ``(K, K)`` second moments of the inputs in the order of `in_memory_order`; for a depthwise
            convolution ``(C, K, K)``, one matrix a channel.
        damping: Added to the diagonal, as a share of its mean.
    """
    scales = _row_scales(weight, bias, input_scale, limits).astype(np.float64)
    rows = in_memory_order(weight).astype(np.float64) / scales[:, None]
    integers = np.empty_like(rows)
    factors = _inverse_factors(moments, damping)
    for column in range(rows.shape[1]):
        integers[:, column] = _rounded(rows[:, column], integers[:, :column], limits)
        error = (rows[:, column] - integers[:, column]) / factors[..., column, column]
        rows[:, column:] -= error[:, None] * factors[..., column, column:]
    shaped = np.moveaxis(integers.reshape(np.moveaxis(weight, 1, -1).shape), -1, 1)
    return IntegerWeights(shaped.astype(np.int8), scales.astype(np.float32), bias)


def _row_scales(weight: Array, bias: Array, input_scale: float, limits: WeightLimits) -> NDArray[np.float32]:
    """``(O,)`` finest scale of each output channel that the limits and an int32 bias allow."""
    rows = in_memory_order(weight)
    scales = np.abs(rows).max(axis=1) / limits.largest
    if limits.largest_pair is not None:
        # Rounding may add half a step to either weight of a pair.
        scales = np.maximum(scales, _largest_pairs(rows) / (limits.largest_pair - 1))
    scales = np.maximum(scales, np.abs(bias) / (input_scale * _LARGEST_BIAS))
    return np.where(scales > 0, np.maximum(scales, _SMALLEST_SCALE), 1).astype(np.float32)


def _largest_pairs(rows: Array) -> Array:
    """``(O,)`` largest sum of the positive parts, or of the negative parts, of two neighbours."""
    even = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    pairs = even.reshape(len(rows), -1, 2)
    positive = np.maximum(pairs, 0).sum(axis=2).max(axis=1)
    result: Array = np.maximum(positive, np.maximum(-pairs, 0).sum(axis=2).max(axis=1))
    return result


def _rounded(column: Array, before: Array, limits: WeightLimits) -> Array:
    """Round a column within the limits, the pair with its left neighbour included."""
    low, high = np.full(len(column), -limits.largest), np.full(len(column), limits.largest)
    if limits.largest_pair is not None and before.shape[1] % 2:
        left = before[:, -1]
        high = np.minimum(high, limits.largest_pair - np.maximum(left, 0))
        low = np.maximum(low, -limits.largest_pair - np.minimum(left, 0))
    return np.clip(np.rint(column), low, high)


def _inverse_factors(moments: Array, damping: float) -> Array:
    """Upper Cholesky factor of the inverse of each damped matrix."""
    size = moments.shape[-1]
    diagonal = np.einsum("...ii->...i", moments).mean(axis=-1)
    # Of inputs that hardly vary about a large mean, float32 sums leave a covariance with negative eigenvalues; their
    # size is how far all eigenvalues are uncertain.
    eigenvalues = np.linalg.eigvalsh(moments)
    least = np.maximum(1e-6 * np.abs(eigenvalues).max(axis=-1), 1e-12)
    ridge = np.maximum(damping * diagonal, least) - 2 * np.minimum(eigenvalues.min(axis=-1), 0)
    damped = moments + ridge[..., None, None] * np.eye(size)
    # With R upper and M = R R', the inverse of M is (R^-1)' R^-1: more stable than factoring the inverse itself.
    upper = np.linalg.cholesky(damped[..., ::-1, ::-1])[..., ::-1, ::-1]
    return np.linalg.inv(upper)
