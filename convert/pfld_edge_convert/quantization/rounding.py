"""Rounds weights so that a layer's output, not its weights, is closest to the float network's."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_convert.quantization.weights import IntegerWeights, WeightLimits, in_memory_order, row_scales

__all__ = ["round_nearest", "round_with_feedback"]

Array = NDArray[np.float64]


def round_nearest(weight: Array, bias: Array, input_scale: float, limits: WeightLimits) -> IntegerWeights:
    """Round each weight by itself.

    Args:
        weight: ``(O, I, ...)`` real.
        bias: ``(O,)`` real.
        input_scale: Of the activation that the weights meet.
        limits: Of the processor.
    """
    scales = row_scales(weight, bias, input_scale, limits)
    shape = (-1,) + (1,) * (weight.ndim - 1)
    integers = np.rint(weight / scales.reshape(shape)).clip(-limits.largest, limits.largest)
    return IntegerWeights(integers.astype(np.int8), scales, bias)


def round_with_feedback(
    weight: Array, bias: Array, input_scale: float, limits: WeightLimits, moments: Array, damping: float = 0.01
) -> IntegerWeights:
    """Round one column after the other, and let those still to come make up for the error.

    Optimal Brain Quantization in fixed order, as in GPTQ (Frantar et al., arXiv 2210.17323, section 3): after
    rounding a column, the error times the rest of the inverse second-moment matrix is spread over the columns left.

    Args:
        weight: ``(O, I, ...)`` real; for a depthwise convolution ``(C, 1, kh, kw)``.
        bias: ``(O,)`` real.
        input_scale: Of the activation that the weights meet.
        limits: Of the processor.
        moments: ``(K, K)`` second moments of the inputs in the order of `in_memory_order`; for a depthwise
            convolution ``(C, K, K)``, one matrix a channel.
        damping: Added to the diagonal, as a share of its mean.
    """
    scales = row_scales(weight, bias, input_scale, limits).astype(np.float64)
    rows = in_memory_order(weight).astype(np.float64) / scales[:, None]
    integers = np.empty_like(rows)
    factors = _inverse_factors(moments, damping)
    for column in range(rows.shape[1]):
        integers[:, column] = _rounded(rows[:, column], integers[:, :column], limits)
        pivot = factors[..., column, column]
        error = (rows[:, column] - integers[:, column]) / pivot
        rest = factors[..., column, column:]
        rows[:, column:] -= error[:, None] * rest
    order = np.moveaxis(weight, 1, -1).shape
    shaped = np.moveaxis(integers.reshape(order), -1, 1)
    return IntegerWeights(shaped.astype(np.int8), scales.astype(np.float32), bias)


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
    ridge = np.maximum(damping * diagonal, 1e-12)[..., None, None] * np.eye(size)
    inverse = np.linalg.inv(moments + ridge)
    return np.swapaxes(np.linalg.cholesky((inverse + np.swapaxes(inverse, -1, -2)) / 2), -1, -2)
