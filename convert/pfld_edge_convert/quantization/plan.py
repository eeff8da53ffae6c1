"""The quantization plan: a grid for each activation and integer weights for each layer of a float network.

A `Plan` is all that a writer in `pfld_edge_convert.formats` needs. Activations are uint8, with one scale and zero
point per tensor: real value = scale * (integer - zero point).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.passes.base import GraphIndex, attribute
from pfld_edge_convert.passes.channels import is_dense, pointwise_path
from pfld_edge_runtime.arrays import Float32Array, Float64Array, Int64Array, Uint8Array

LEVELS = 255
"""Steps of an 8-bit grid."""

MOVES = frozenset(
    {"DepthToSpace", "Flatten", "Identity", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Squeeze", "Transpose"}
    | {"Unsqueeze"}
)
"""Operators that only move or select values, so that they work on integers as on real values."""

COMPUTED = frozenset({"Add", "GlobalAveragePool", "HardSwish", "LeakyRelu", "Mul", "Sigmoid"})
"""Operators without weights that are computed in integers, from the grids of their inputs to one of their own."""

CLAMPED = frozenset({"Add", "Mul"})
"""Those that saturate to the bounds of the Relu or Clip that alone reads them, as Conv and Gemm do."""

QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger", "QGemm"})
"""Operators of networks that are quantized already."""

_SMALLEST_SCALE = 1e-12

_LARGEST_DENOMINATOR = 1023
"""Results are then 1/2046 of a step or more away from a half; float32 errs by some 1/8192 of a step."""

_UNIT_FRACTIONS, _SMALLEST_RATIO = 1 / 12, 2.0**-14
"""Ratios up to the first become 1 / q."""

_SMALL, _SMALL_PART = 10, 64
"""A last product of at most a share of one in so many of the weights stays in float together with what it reads; one
that is a part of a sum, whose features do less, of less."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Scale and zero point of an activation: the integer, 0 to 255, for exactly 0, so that zero padding is exact."""

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

    def quantize(self, values: NDArray[np.floating]) -> Uint8Array:
        """Nearest integers, ties to even, clipped to the grid."""
        steps = np.rint(values / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(steps, 0, LEVELS), np.uint8)

    def clamped(self, bounds: tuple[float, float]) -> tuple[int, int]:
        """The integers nearest to the bounds of a Relu or Clip."""
        low, high = (float(np.clip(bound / self.scale + self.zero_point, 0, LEVELS)) for bound in bounds)
        return round(low), round(high)

    def dequantize(self, integers: NDArray[np.generic]) -> Float32Array:
        """Real values of integers on the grid."""
        return np.asarray((integers.astype(np.float32) - self.zero_point) * np.float32(self.scale), np.float32)

    def clip(self, values: Float32Array) -> Float32Array:
        """Clip real values to the grid."""
        return np.clip(values, np.float32(self.low), np.float32(self.high))


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """Quantized weights of a Conv or Gemm: integers ``(O, I, ...)``, scales ``(O,)``, real bias ``(O,)``."""

    integers: NDArray[np.int8]
    scales: Float32Array
    bias: Float64Array

    def integer_bias(self, input_scale: float) -> NDArray[np.int32]:
        """Bias in units of the accumulator, input scale times weight scale."""
        return np.rint(self.bias / (input_scale * self.scales.astype(np.float64))).astype(np.int32)

    def real(self) -> Float64Array:
        """``(O, I, ...)`` dequantized weights."""
        shape = (-1,) + (1,) * (self.integers.ndim - 1)
        return self.integers.astype(np.float64) * self.scales.reshape(shape).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Layer:
    """A Conv or Gemm with constant weights, fused with the Relu or Clip (`clamp`) that alone reads it, if any.

    `groups` of channels are computed each from its own inputs: as many as channels in a depthwise convolution.
    """

    node: onnx.NodeProto
    clamp: onnx.NodeProto | None
    name: str
    groups: int = 1
    depthwise: bool = False

    @property
    def source(self) -> str:
        """The tensor that the layer reads."""
        return str(self.node.input[0])

    @property
    def output(self) -> str:
        """The tensor that the layer computes, after the Relu or Clip where there is one."""
        return str((self.clamp or self.node).output[0])

    def weights(self, index: GraphIndex) -> tuple[Float64Array, Float64Array]:
        """Real weights ``(O, I, ...)`` and bias ``(O,)``, float64."""
        weights = index.weights(self.node)
        if weights is None:
            raise ValueError(f"{self.name} has no constant weights")
        return weights[0].astype(np.float64), weights[1].astype(np.float64)


@dataclass(frozen=True)
class Plan:
    """What each tensor and layer of a float network in canonical form (`default_passes`) becomes in 8 bits.

    Grids are those of the activations that may be 8-bit, by the tensor's name in the model; weights those of the layers
    in 8 bits, by `Layer.output`. With `uint8_input` the quantized network reads ``(n, S, S, 3)`` uint8 images, by a
    grid of scale 1, and the input of `model` is ``pixel - zero_point``.
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

    def output_scale(self, layer: Layer) -> float | None:
        """Scale of the integers that a layer gives; None where it gives float."""
        grid = self.grids.get(layer.output)
        return None if grid is None else grid.scale


def odd_fraction(least: Float64Array | float) -> Float64Array:
    """The next larger fraction with an odd denominator: 1 / q up to 1/12, where it is at most 2 / q larger, then p / q.

    A result is an integer times a ratio of scales, rounded. Runtimes compute the product in float32 in different
    orders, and break ties differently. Integer multiples of ``p / q`` with q odd are 1/(2 q) or more away from a half,
    so that all of them round alike; those of ``1 / q`` can be kept alike by kernels that round twice. Ratios below
    1/16384, where q would be too large, are raised to it: such a row's weights hardly move a result.
    """
    ratio = np.maximum(np.asarray(least, np.float64), _SMALLEST_RATIO)
    parts = np.where(ratio > _UNIT_FRACTIONS, np.floor(ratio * _LARGEST_DENOMINATOR), 1.0)
    whole = np.floor(parts / ratio)
    result: Float64Array = parts / (whole - (whole % 2 == 0))
    return result


def copy_offsets(weight: Float64Array, bias: Float64Array) -> Float64Array:
    """``(O,)`` fractions of a step, -1/2 to 1/2, for channels of equal weight and bias; 0 for others and for padding.

    Copies of a channel, see `CopyChannels`, then round to neighbouring integers, whose mean is nearer (dithering).
    """
    rows = np.column_stack([weight.reshape(len(weight), -1), bias])
    _, group, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    rank = np.zeros(len(rows))
    for number in np.flatnonzero(counts > 1):
        rank[group == number] = np.arange(counts[number])
    result: Float64Array = np.where(rows[:, :-1].any(axis=1), (rank + 0.5) / counts[group] - 0.5, 0.0)
    return result


def clamp_bounds(index: GraphIndex, node: onnx.NodeProto) -> tuple[float, float] | None:
    """Bounds of a Relu, or of a Clip of any opset with constant bounds; None of any other node."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    bounds = [attribute(node, "min", -math.inf), attribute(node, "max", math.inf)]
    for place, name in enumerate(node.input[1:]):
        if name and name not in index.constants:
            return None
        if name:
            bounds[place] = index.constants[name].item()
    return float(bounds[0]), float(bounds[1])


def fused_clamp(index: GraphIndex, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The Relu or Clip that a layer, an addition or a product takes over; None where there is none."""
    reader = index.only_consumer(node.output[0])
    fuses = node.op_type in CLAMPED or _is_layer(index, node)
    return reader if fuses and reader is not None and clamp_bounds(index, reader) is not None else None


def weighted_layers(index: GraphIndex) -> list[Layer]:
    """All Conv and Gemm with constant weights, first to last."""
    return [
        Layer(
            node,
            fused_clamp(index, node),
            node.name or node.output[0],
            groups := attribute(node, "group", 1),
            depthwise=groups > 1 and index.constants[node.input[1]].shape[1] == 1,
        )
        for node in index.graph.node
        if _is_layer(index, node)
    ]


def _is_layer(index: GraphIndex, node: onnx.NodeProto) -> bool:
    if node.op_type != "Conv":
        return is_dense(index, node)
    weights = index.weights(node)
    return weights is not None and weights[0].ndim == 4


def nearest_resize(node: onnx.NodeProto) -> bool:
    """Whether a node is a Resize that copies, pixel y reading pixel ``floor(y / factor)``."""
    return (
        node.op_type == "Resize"
        and attribute(node, "mode", b"nearest") == b"nearest"
        and attribute(node, "coordinate_transformation_mode", b"half_pixel") == b"asymmetric"
        and attribute(node, "nearest_mode", b"round_prefer_floor") == b"floor"
    )


def resize_places(index: GraphIndex, node: onnx.NodeProto) -> tuple[Int64Array, Int64Array] | None:
    """Rows and columns of images that a `nearest_resize` reads for those of its result; None where sizes are free."""
    source, result = (index.shapes.get(name, ()) for name in (node.input[0], node.output[0]))
    scales = index.constants.get(node.input[2]) if len(node.input) > 2 else None
    # onnxruntime copies an image that keeps its size, whatever the scales.
    by_sizes = scales is None or not scales.size or source[2:] == result[2:]
    if len(source) != 4 or len(result) != 4 or source[1] != result[1]:
        return None
    places = []
    for axis in (2, 3):
        read, made = source[axis], result[axis]
        if not isinstance(read, int) or not isinstance(made, int):
            return None
        scale = made / read if by_sizes or scales is None else scales[axis - 4]
        # In float32, as onnxruntime divides.
        steps = np.floor(np.arange(made, dtype=np.float32) / np.float32(scale)).astype(np.int64)
        places.append(steps.clip(max=read - 1))
    return places[0], places[1]


def keeps_grid(node: onnx.NodeProto) -> bool:
    """Whether a node moves, selects or averages values, so that its output has the grid of its input."""
    return node.op_type in MOVES or node.op_type == "AveragePool" or nearest_resize(node)


def integer_tensors(index: GraphIndex, layers: list[Layer]) -> list[str]:
    """Tensors that need a grid of their own, first to last.

    These are outputs of layers and of `COMPUTED` operators, of Relu and Clip that aren't fused, and whatever else a
    layer reads. Where no layer follows, as in the last Gemm or behind heat maps, results stay float: nothing but a
    convolution that can't write float gets a grid there. Nor do sums of products and `_float_features`.
    """
    sources = {layer.source for layer in layers}
    followed = followed_by(index, layers)
    made = {layer.node.output[0]: layer.output for layer in layers}
    names: dict[str, None] = {}
    covered = {value.name for value in index.graph.input}
    for node in index.graph.node:
        output = node.output[0]
        if output in made:
            own = made[output] not in index.outputs and (node.op_type == "Conv" or made[output] in followed)
            reader = index.only_consumer(output)
            own = own and (reader is None or reader.op_type != "Sum")
            output = made[output]
        elif node.op_type in COMPUTED or clamp_bounds(index, node):
            clamp = fused_clamp(index, node)
            output = clamp.output[0] if clamp else output
            own = output in followed and output not in covered
        elif keeps_grid(node) or node.op_type == "Concat":
            own = output in sources and not covered.issuperset(_computed_inputs(index, node))
            covered.add(output)
        else:
            own = output in sources
        if own:
            names[output] = None
            covered.add(output)
    unwanted = _float_features(index, layers, followed)
    of_floats = (
        name
        for name in names
        if name not in unwanted and index.types.get(name, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT
    )
    return [name for name in of_floats if index.rank(name) not in (0, 1)]


def _float_features(index: GraphIndex, layers: list[Layer], followed: set[str]) -> set[str]:
    """What Gemm make for the last product: float spares landmarks the rounding.

    What that product itself reads is quantized where its weights are many, which would cost bytes as floats.
    """
    sizes = {layer.output: index.constants[layer.node.input[1]].size for layer in layers}
    made = {layer.output for layer in layers if layer.node.op_type == "Gemm"}
    found = set[str]()
    for layer in layers:
        path = [] if layer.output in followed else pointwise_path(index, layer.source)
        # A product's output is behind the Relu that it takes over.
        begin = next((place for place, name in enumerate(path, start=1) if name in made), 0)
        reader = index.only_consumer(layer.output)
        least = _SMALL if reader is None or reader.op_type != "Sum" else _SMALL_PART
        is_large = sizes[layer.output] * least > sum(sizes.values())
        found.update(path[int(is_large) : begin])
    return found


def followed_by(index: GraphIndex, layers: list[Layer]) -> set[str]:
    """Tensors from which a layer is reached."""
    found = {layer.source for layer in layers}
    for node in reversed(index.graph.node):
        if found.intersection(node.output):
            found.update(node.input)
    return found


def _computed_inputs(index: GraphIndex, node: onnx.NodeProto) -> list[str]:
    return [name for name in node.input if name and name not in index.constants]


def shared_grids(index: GraphIndex) -> list[list[str]]:
    """Tensors that must share a grid: inputs and output of each Concat, and of whatever keeps a grid."""
    groups: list[set[str]] = []
    for node in index.graph.node:
        if keeps_grid(node) or node.op_type == "Concat":
            group = {*_computed_inputs(index, node), node.output[0]}
            touching = [other for other in groups if other & group]
            groups = [other for other in groups if not other & group] + [group.union(*touching)]
    return [sorted(group) for group in groups]


def propagate_grids(index: GraphIndex, grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """Add the grids of tensors that keep their input's, of Concat of equal grids, and of Relu and Clip not fused.

    A Relu or Clip takes its input's grid, on which it is exact to half a step, unless that would cost it a bit.
    """
    result = dict(grids)
    joined = {node.output[0] for node in index.graph.node if node.op_type == "Concat"}
    tied = {name for group in shared_grids(index) if joined.intersection(group) for name in group}
    for node in index.graph.node:
        inputs = {result.get(name) for name in _computed_inputs(index, node)}
        if len(inputs) != 1:
            continue
        (grid,) = inputs
        output = node.output[0]
        if grid is not None and (keeps_grid(node) or node.op_type == "Concat"):
            result.setdefault(output, grid)
        elif grid is not None and clamp_bounds(index, node) and output not in tied:
            own = result.get(output, grid)
            if own.scale > grid.scale / 2:
                result[output] = grid
    return result


def hard_swish_grid(low: float, high: float) -> Grid:
    """The grid that covers a range and [-3, 0], with 3 a multiple of its scale; see `hard_swish_offset`."""
    low, high = min(low, -3.0), max(high, 0.0)
    steps = math.floor(3 * LEVELS / (high - low))
    while steps > 1 and math.ceil(-low * steps / 3) + math.ceil(high * steps / 3) > LEVELS:
        steps -= 1
    return Grid(float(np.float32(3 / max(steps, 1))), min(math.ceil(-low * max(steps, 1) / 3), LEVELS))


def hard_swish_offset(grid: Grid) -> int | None:
    """The integer that stands for -3, if -3 and 3 are integers of a grid.

    HardSwish is ``x * clip(x / 6 + 1 / 2, 0, 1)``. With q the integers of x, ``x / 6 + 1 / 2`` has the same integers on
    a grid of scale ``scale / 6`` whose zero point is this offset, so that a Clip and a product of integers suffice.
    """
    steps = 3 / grid.scale
    offset = grid.zero_point - round(steps)
    return offset if abs(steps - round(steps)) < 1e-3 and offset >= 0 else None
