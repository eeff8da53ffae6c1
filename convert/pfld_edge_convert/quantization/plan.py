"""The quantization plan: a grid for each activation and integer weights for each layer of a float network.

A `Plan` is all that a writer in `pfld_edge_convert.formats` needs. Activations are uint8, with one scale and zero
point per tensor: real value = scale * (integer - zero point).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.passes.base import GraphIndex
from pfld_edge_convert.passes.channels import channel_weights, is_depthwise

Array = NDArray[np.float64]

LEVELS = 255
"""Steps of an 8-bit grid."""

MOVES = frozenset({"Flatten", "Identity", "MaxPool"})
"""Operators that only move or select values, so that they work on integers as on real values."""

_SMALLEST_SCALE = 1e-12


@dataclass(frozen=True, slots=True)
class Grid:
    """Scale and zero point of an activation.

    Attributes:
        scale: Distance of two neighbours.
        zero_point: The integer, 0 to 255, that stands for exactly 0, so that zero padding is exact.
    """

    scale: float
    zero_point: int

    @classmethod
    def covering(cls, low: float, high: float) -> "Grid":
        """Make the grid that covers a range and 0 (Jacob et al., arXiv 1712.05877, section 3).

        The zero point is rounded; the scale is then widened until both ends are on the grid again.
        """
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        scale = max((high - low) / LEVELS, _SMALLEST_SCALE)
        # Each side of 0 that the range reaches gets at least one step.
        zero_point = min(max(round(-low / scale), 1 if low < 0 else 0), LEVELS - 1 if high > 0 else LEVELS)
        below = -low / zero_point if zero_point else 0.0
        above = high / (LEVELS - zero_point) if zero_point < LEVELS else 0.0
        # float32, as the file will hold it, so that what is computed here is what devices compute.
        return cls(float(np.float32(max(below, above, _SMALLEST_SCALE))), zero_point)

    @property
    def low(self) -> float:
        """Smallest value on the grid."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """Largest value on the grid."""
        return (LEVELS - self.zero_point) * self.scale

    def quantize(self, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Nearest integers, ties to even, clipped to the grid."""
        steps = np.rint(values / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(steps, 0, LEVELS), np.uint8)

    def dequantize(self, integers: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Real values of integers on the grid."""
        return np.asarray((integers.astype(np.float32) - self.zero_point) * np.float32(self.scale), np.float32)


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


@dataclass(frozen=True, slots=True)
class Layer:
    """A Conv or Gemm with constant weights, fused with the Relu that alone reads it, if there is one."""

    node: onnx.NodeProto
    relu: onnx.NodeProto | None
    name: str
    depthwise: bool

    @property
    def source(self) -> str:
        """The tensor that the layer reads."""
        return str(self.node.input[0])

    @property
    def output(self) -> str:
        """The tensor that the layer computes, after the Relu where there is one."""
        return str((self.relu or self.node).output[0])

    def weights(self, index: GraphIndex) -> tuple[Array, Array]:
        """Real weights ``(O, I, ...)`` and bias ``(O,)``, float64."""
        weights = index.weights(self.node)
        if weights is None:
            raise ValueError(f"{self.name} has no constant weights")
        return weights[0].astype(np.float64), weights[1].astype(np.float64)


@dataclass(frozen=True)
class Plan:
    """What each tensor and layer of a float network becomes in 8 bits.

    Attributes:
        model: The float network in canonical form (`default_passes`). With `uint8_input` its input is ``pixel - 128``.
        grids: Grid of each activation that may be 8-bit, by the tensor's name in `model`.
        weights: Integer weights of each layer, by `Layer.output`; layers that aren't here stay in float.
        uint8_input: The quantized network reads ``(n, S, S, 3)`` uint8 images.
    """

    model: onnx.ModelProto
    grids: Mapping[str, Grid]
    weights: Mapping[str, IntegerWeights] = field(default_factory=dict)
    uint8_input: bool = False

    @cached_property
    def index(self) -> GraphIndex:
        """Of `model`."""
        return GraphIndex(self.model)

    @cached_property
    def layers(self) -> list[Layer]:
        """All layers of `model`, first to last."""
        return weighted_layers(self.index)

    def layer_input(self, layer: Layer) -> "LayerInput | None":
        """See the function `layer_input`."""
        return layer_input(self.index, layer.source, self.grids)


def weighted_layers(index: GraphIndex) -> list[Layer]:
    """All Conv and Gemm with constant weights, first to last."""
    layers = []
    for node in index.graph.node:
        if channel_weights(index, node) is not None:
            reader = index.only_consumer(node.output[0])
            relu = reader if reader is not None and reader.op_type == "Relu" else None
            layers.append(Layer(node, relu, node.name or node.output[0], is_depthwise(index, node)))
    return layers


def integer_tensors(index: GraphIndex, layers: list[Layer]) -> list[str]:
    """Tensors that need a grid of their own: outputs of layers, additions and means."""
    made = [layer.output for layer in layers if layer.output not in index.outputs]
    return made + [node.output[0] for node in index.graph.node if node.op_type in ("Add", "GlobalAveragePool")]


def shared_grids(index: GraphIndex) -> list[list[str]]:
    """Tensors that must share a grid: the inputs and the output of each Concat of maps, which then copies bytes.

    Pooled features (rank 2) may have different grids: the Gemm that reads them holds their scales in its weights.
    """
    groups: list[set[str]] = []
    for node in index.graph.node:
        if node.op_type == "Concat" and index.rank(node.output[0]) == 4:
            group = {*node.input, node.output[0]}
            touching = [other for other in groups if other & group]
            groups = [other for other in groups if not other & group] + [group.union(*touching)]
    return [sorted(group) for group in groups]


def propagate_grids(index: GraphIndex, grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """Add the grids of tensors that only move numbers: Flatten, MaxPool, and Concat of equal grids."""
    result = dict(grids)
    for node in index.graph.node:
        inputs = {result.get(name) for name in node.input if name not in index.constants}
        if len(inputs) == 1 and (node.op_type in MOVES or node.op_type == "Concat"):
            (grid,) = inputs
            if grid is not None:
                result.setdefault(node.output[0], grid)
    return result


@dataclass(frozen=True, slots=True)
class LayerInput:
    """The grid of a layer's input, or of each column where features of several grids are concatenated.

    Integer kernels take one scale and zero point. Where columns differ, their scales go into the weights and their
    zero points into the bias; the kernel then takes a scale of 1 and a zero point of 0.

    Attributes:
        column_scales, column_zeros: ``(K,)`` of each column, else None.
    """

    scale: float
    zero_point: int
    column_scales: Array | None = None
    column_zeros: Array | None = None

    def real(self, integers: NDArray[np.generic]) -> NDArray[np.float32]:
        """Dequantize integers."""
        scale, zero = self._columns
        return np.asarray((integers.astype(np.float32) - zero) * scale, np.float32)

    def clipped(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Clip real values to the grids."""
        scale, zero = self._columns
        return np.clip(values, np.asarray(-zero * scale, np.float32), np.asarray((LEVELS - zero) * scale, np.float32))

    @property
    def _columns(self) -> tuple[Array | float, Array | int]:
        if self.column_scales is None or self.column_zeros is None:
            return self.scale, self.zero_point
        return self.column_scales, self.column_zeros

    def scaled_weights(self, weight: Array) -> Array:
        """Weights with the columns' scales in them, as the kernel multiplies."""
        return weight if self.column_scales is None else weight * self.column_scales

    def unscaled_weights(self, weight: Array) -> Array:
        """Undo `scaled_weights`."""
        return weight if self.column_scales is None else weight / self.column_scales

    def scaled_moments(self, second: Array) -> Array:
        """Second moments of the inputs for weights as `scaled_weights` gives them."""
        return second if self.column_scales is None else second / np.outer(self.column_scales, self.column_scales)

    def with_bias(self, weights: IntegerWeights, bias: Array) -> IntegerWeights:
        """The weights with another real bias, corrected for the columns' zero points."""
        if self.column_zeros is not None:
            bias = bias - weights.real() @ self.column_zeros
        return IntegerWeights(weights.integers, weights.scales, bias)


def layer_input(index: GraphIndex, source: str, grids: Mapping[str, Grid]) -> LayerInput | None:
    """Describe the integers that a layer reads; None where its input has no grid: it must stay in float."""
    if source in grids:
        return LayerInput(grids[source].scale, grids[source].zero_point)
    node = index.producers.get(source)
    if node is None or node.op_type != "Concat" or index.rank(source) != 2 or index.only_consumer(source) is None:
        return None
    scales: list[float] = []
    zeros: list[float] = []
    for name in node.input:
        grid, width = grids.get(name), index.shapes[name][1]
        if grid is None or not isinstance(width, int):
            return None
        scales += [grid.scale] * width
        zeros += [grid.zero_point] * width
    return LayerInput(1.0, 0, np.array(scales), np.array(zeros))
