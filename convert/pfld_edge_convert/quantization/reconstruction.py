"""Layer-wise reconstruction: rounds the weights of each layer given the quantized outputs of the layers before it.

The quantized and the float network run node by node over all faces. At each layer weights are rounded, to nearest or
with error feedback (GPTQ), and the bias is corrected, before the next node runs. The quantized network runs as
QOperator nodes, whatever format is written in the end.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pfld_edge_convert.formats.qoperator import integer_name, weight_constants, write_qoperator
from pfld_edge_convert.model_file import open_model, run_model
from pfld_edge_convert.passes.base import attribute, with_outputs
from pfld_edge_convert.quantization.plan import (
    Grid,
    IntegerWeights,
    Layer,
    Plan,
    copy_offsets,
    odd_fraction,
    propagate_grids,
)
from pfld_edge_convert.quantization.settings import WeightLimits
from pfld_edge_runtime.arrays import Float32Array, Float64Array

_POSITIONS = 48
"""Output positions of a map that are sampled in each face."""

_CHUNK = 32
"""Faces in one run of a node."""

Value = TypeVar("Value", bound=np.generic)

_DAMPING = 0.01
"""Added to the diagonal of second moments, as a share of its mean."""

_RIDGE = 0.2
"""The same where weights are moved to compensate the errors of the layers before."""

_CORRELATED = 5
"""Samples of which one counts where weights are moved, for those of one face resemble each other."""

_SWEEPS = 2
"""Rounds of coordinate descent behind the feedback."""

_LARGEST_BIAS = 2.0**30
"""Half of int32's range; the other half is for the sums."""

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Scales of weights that weight decay left below 1e-42 would be 0 in float32."""


def in_memory_order(weight: Float64Array) -> Float64Array:
    """``(O, K)`` in the order in which kernels multiply, channels last."""
    return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)


def _from_memory_order(rows: Float64Array, weight: Float64Array) -> Float64Array:
    """Undo `in_memory_order`, for a weight of that shape."""
    return np.moveaxis(rows.reshape(np.moveaxis(weight, 1, -1).shape), -1, 1)


def round_nearest(
    weight: Float64Array,
    bias: Float64Array,
    input_scale: float,
    limits: WeightLimits,
    output_scale: float | None = None,
) -> IntegerWeights:
    """Round each weight ``(O, I, ...)`` by itself; `bias` ``(O,)`` is real; `output_scale` see `odd_fraction`."""
    scales = _row_scales(weight, bias, input_scale, limits, output_scale)
    shape = (-1,) + (1,) * (weight.ndim - 1)
    integers = np.rint(weight / scales.reshape(shape)).clip(-limits.largest, limits.largest)
    return IntegerWeights(integers.astype(np.int8), scales, bias)


def round_with_feedback(
    weight: Float64Array,
    bias: Float64Array,
    input_scale: float,
    limits: WeightLimits,
    moments: Float64Array,
    output_scale: float | None = None,
) -> IntegerWeights:
    """Round one column after the other, and correct the remaining columns for the error; then each again.

    Optimal Brain Quantization in fixed order, as in GPTQ (Frantar et al., arXiv 2210.17323, section 3), then coordinate
    descent on the same error (QuantEase, Behdin et al., arXiv 2309.01885). Weights and
    bias are as for `round_nearest`; moments ``(G, K, K)`` are the second ones of the inputs of each group of channels,
    or ``(K, K)`` of the only one, in the order of `in_memory_order`.
    """
    scales = _row_scales(weight, bias, input_scale, limits, output_scale).astype(np.float64)
    exact = in_memory_order(weight).astype(np.float64) / scales[:, None]
    rows, integers = exact.copy(), np.zeros_like(exact)
    width, vary = rows.shape[1], pairs_vary(weight)
    damped = _damped(moments).reshape(-1, width, width)
    factors = _inverse_factors(damped)
    grouped = rows.reshape(len(factors), -1, width)
    for column in range(width):
        integers[:, column] = _rounded(rows[:, column], integers, column, limits, vary)
        error = (rows[:, column] - integers[:, column]).reshape(len(factors), -1) / factors[:, column, column, None]
        grouped[:, :, column:] -= error[..., None] * factors[:, None, column, column:]
    for column in list(range(width)) * _SWEEPS:
        error = (integers - exact).reshape(grouped.shape) @ damped[:, :, column, None]
        best = integers[:, column] - (error[..., 0] / damped[:, None, column, column]).ravel()
        integers[:, column] = _rounded(best, integers, column, limits, vary)
    return IntegerWeights(_from_memory_order(integers, weight).astype(np.int8), scales.astype(np.float32), bias)


def _row_scales(
    weight: Float64Array, bias: Float64Array, input_scale: float, limits: WeightLimits, output_scale: float | None
) -> Float32Array:
    """``(O,)`` finest scale of each output channel that limits, an int32 bias and `odd_fraction` allow."""
    rows = in_memory_order(weight)
    scales = np.abs(rows).max(axis=1) / limits.largest
    if limits.largest_pair is not None:
        # Rounding may add half a step to either weight of a pair.
        scales = np.maximum(scales, _largest_pairs(rows, pairs_vary(weight)) / (limits.largest_pair - 1))
    scales = np.maximum(scales, np.abs(bias) / (input_scale * _LARGEST_BIAS))
    if output_scale is not None:
        scales = odd_fraction(scales * input_scale / output_scale) * output_scale / input_scale
    return np.where(scales > 0, np.maximum(scales, _SMALLEST_SCALE), 1).astype(np.float32)


def pairs_vary(weight: Float64Array) -> bool:
    """Whether runtimes pair the channels of a convolution differently: an odd number of them, such as a photograph's 3.

    onnxruntime pairs them across positions, oneDNN (in OpenVINO) fills those of each position up to 4.
    """
    return weight.ndim > 2 and weight.shape[1] % 2 == 1


def _largest_pairs(rows: Float64Array, vary: bool) -> Float64Array:
    """``(O,)`` largest sum of the positive parts, or of the negative parts, of two neighbours that form a pair."""
    even = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    pairs = np.stack([even[:, :-1], even[:, 1:]], axis=2)[:, :: 1 if vary else 2]
    positive = np.maximum(pairs, 0).sum(axis=2).max(axis=1)
    result: Float64Array = np.maximum(positive, np.maximum(-pairs, 0).sum(axis=2).max(axis=1))
    return result


def _rounded(
    values: Float64Array, integers: Float64Array, column: int, limits: WeightLimits, vary: bool
) -> Float64Array:
    """Round a column within the limits, those of the pairs with its neighbours included."""
    low, high = np.full(len(values), -limits.largest), np.full(len(values), limits.largest)
    neighbours = (column - 1, column + 1) if vary else (column ^ 1,)
    for neighbour in neighbours:
        if limits.largest_pair is not None and 0 <= neighbour < integers.shape[1]:
            high = np.minimum(high, limits.largest_pair - np.maximum(integers[:, neighbour], 0))
            low = np.maximum(low, -limits.largest_pair - np.minimum(integers[:, neighbour], 0))
    return np.clip(np.rint(values), low, high)


def _damped(moments: Float64Array, share: float = _DAMPING) -> Float64Array:
    """Second moments with a ridge that makes them positive definite, a share of the diagonal's mean."""
    diagonal = np.einsum("...ii->...i", moments).mean(axis=-1)
    # Of inputs that hardly vary about a large mean, float32 sums leave a covariance with negative eigenvalues; their
    # size is how far all eigenvalues are uncertain.
    eigenvalues = np.linalg.eigvalsh(moments)
    least = np.maximum(1e-6 * np.abs(eigenvalues).max(axis=-1), 1e-12)
    ridge = np.maximum(share * diagonal, least) - 2 * np.minimum(eigenvalues.min(axis=-1), 0)
    return np.asarray(moments + ridge[..., None, None] * np.eye(moments.shape[-1]))


def _inverse_factors(damped: Float64Array) -> Float64Array:
    """Upper Cholesky factor of the inverse of each matrix."""
    # With R upper and M = R R', the inverse of M is (R^-1)' R^-1: more stable than factoring the inverse itself.
    upper = np.linalg.cholesky(damped[..., ::-1, ::-1])[..., ::-1, ::-1]
    return np.linalg.inv(upper)


@dataclass(slots=True)
class Moments:
    """Sums over samples of the inputs of a layer's groups of channels.

    Of x of the quantized network, of f of the float network, ``(G, K)`` both, of x times x and of f - x times x,
    ``(G, K, K)``.
    """

    count: int = 0
    mean: Float64Array | float = 0.0
    float_mean: Float64Array | float = 0.0
    second: Float64Array | float = 0.0
    errors: Float64Array | float = 0.0

    def add(self, found: Float32Array, wanted: Float32Array) -> None:
        """Add samples ``(G, n, K)`` of x and of f."""
        self.count += found.shape[-2]
        self.mean = self.mean + found.sum(axis=-2, dtype=np.float64)
        self.float_mean = self.float_mean + wanted.sum(axis=-2, dtype=np.float64)
        self.second = self.second + (np.swapaxes(found, -1, -2) @ found).astype(np.float64)
        self.errors = self.errors + (np.swapaxes(wanted - found, -1, -2) @ found).astype(np.float64)

    def centered(self) -> tuple[Float64Array, Float64Array, Float64Array, Float64Array]:
        """Means of x and of f, the covariance of x, and that of f - x with x.

        The covariance is shrunk towards its diagonal by ``K / (K + count)``, since with few samples it is singular; the
        other towards 0, by a count of one in `_CORRELATED` samples.
        """
        mean, wanted = np.asarray(self.mean) / self.count, np.asarray(self.float_mean) / self.count
        second = np.asarray(self.second) / self.count - mean[..., :, None] * mean[..., None, :]
        errors = np.asarray(self.errors) / self.count - (wanted - mean)[..., :, None] * mean[..., None, :]
        size = second.shape[-1]
        kept, share = (self.count / (few * size + self.count) for few in (_CORRELATED, 1))
        return mean, wanted, second * np.where(np.eye(size) > 0, 1.0, share), kept * errors


def input_patches(
    node: onnx.NodeProto, values: NDArray[Value], positions: int, random: np.random.Generator, padding: int = 0
) -> NDArray[Value]:
    """Cut the input patches of `positions` random output positions a face (im2col), padded with what stands for 0.

    ``(G, samples, K)`` for G groups of channels, each group's channels fastest.
    """
    if node.op_type == "Gemm":
        return values[None]
    height, width = attribute(node, "kernel_shape")
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    down, across = attribute(node, "strides", [1, 1])
    lower, wider = attribute(node, "dilations", [1, 1])
    padded = values
    if top or left or bottom or right:
        padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=padding)
    reach = (lower * (height - 1) + 1, wider * (width - 1) + 1)
    windows = sliding_window_view(padded, reach, axis=(2, 3))[:, :, ::down, ::across, ::lower, ::wider]
    count, _, rows, columns = windows.shape[:4]
    chosen = np.stack([random.permutation(rows * columns)[:positions] for _ in range(count)])
    faces = np.repeat(np.arange(count), chosen.shape[1])
    cut = windows[faces, :, chosen.ravel() // columns, chosen.ravel() % columns]
    groups = attribute(node, "group", 1)
    grouped = cut.reshape(len(cut), groups, -1, height, width).transpose(1, 0, 3, 4, 2)
    return np.ascontiguousarray(grouped).reshape(groups, len(cut), -1)


def initial_plan(
    model: onnx.ModelProto,
    grids: Mapping[str, Grid],
    limits: WeightLimits,
    float_layers: Collection[str] = (),
    *,
    uint8_input: bool = False,
) -> Plan:
    """Make a plan with every weight rounded to the nearest integer; `float_layers` (`Layer.output`) stay in float."""
    plan = Plan(model, grids, uint8_input=uint8_input)
    plan = replace(plan, grids=propagate_grids(plan.index, grids))
    weights = {}
    for layer in plan.layers:
        source = plan.grids.get(layer.source)
        # QGemm can write float; QLinearConv can't.
        is_written = layer.output in plan.grids or layer.node.op_type == "Gemm"
        if layer.output not in float_layers and source is not None and is_written:
            weight, bias = layer.weights(plan.index)
            weights[layer.output] = round_nearest(
                weight, bias, source.scale, limits_of(layer, limits), plan.output_scale(layer)
            )
    return replace(plan, weights=weights)


def reconstruct(
    plan: Plan,
    faces: Float32Array,
    inputs: NDArray[np.generic],
    limits: WeightLimits,
    *,
    more: tuple[Float32Array, NDArray[np.generic]] | None = None,
    feedback: bool = True,
    correct_bias: bool = True,
    advance: Callable[[int], object] = lambda _count: None,
) -> Plan:
    """Improve a plan's weights and biases, layer after layer.

    Weights are moved to where the quantized inputs give the float network's outputs (asymmetric calibration, GPTAQ, Li
    et al., arXiv 2504.02692) and rounded with error feedback (`round_with_feedback`), or stay as they are; the bias
    takes up the measured difference of the outputs' means (bias correction, Nagel et al., arXiv 1906.04721, section
    4.2), or stays. `faces` are as the float network takes them, `inputs` the same as the INT8 network takes them, and
    `more` further ones in both forms for Gemm layers, which get one sample per face. `advance` is called with 1 after
    each layer.
    """
    written = write_qoperator(plan)
    integer, real = NodewiseRunner(written, inputs), NodewiseRunner(plan.model, faces)
    weights = dict(plan.weights)
    for layer in plan.layers:
        source = plan.grids.get(layer.source)
        if layer.output in weights and source is not None:
            found, wanted = integer.run_until(integer_name(written, layer.source)), real.run_until(layer.source)
            moments = _measured(layer, source, found, wanted)
            if more is not None and layer.node.op_type == "Gemm":
                now = write_qoperator(replace(plan, weights=weights))
                found = source.dequantize(run_model(with_outputs(now, integer_name(now, layer.source)), more[1]))
                wanted = source.clip(run_model(with_outputs(plan.model, layer.source), more[0]))
                moments.add(found[None], wanted[None])
            weights[layer.output] = _improved(
                plan, layer, source, weights[layer.output], moments, limits if feedback else None, correct_bias
            )
            integer.constants.update(weight_constants(layer.output, layer.node, weights[layer.output], source.scale))
        advance(1)
    return replace(plan, weights=weights)


def limits_of(layer: Layer, limits: WeightLimits) -> WeightLimits:
    """A depthwise convolution sums in 32 bits on every processor: only the magnitude is limited."""
    return WeightLimits(limits.largest) if layer.depthwise else limits


def _measured(layer: Layer, source: Grid, found: NDArray[np.generic], wanted: NDArray[np.generic]) -> Moments:
    """Moments of a layer's inputs, integers and float, at the same random positions of both networks."""
    moments, zero = Moments(), source.zero_point
    for start in range(0, len(found), _CHUNK):
        integers, exact = (
            input_patches(layer.node, values[start : start + _CHUNK], _POSITIONS, np.random.default_rng(start), padding)
            for values, padding in ((found, zero), (wanted, 0))
        )
        # Clipped to the grids, so that outliers don't shift the biases of all faces.
        moments.add(source.dequantize(integers), source.clip(exact.astype(np.float32)))
    return moments


def _improved(
    plan: Plan,
    layer: Layer,
    source: Grid,
    old: IntegerWeights,
    moments: Moments,
    limits: WeightLimits | None,
    correct_bias: bool,
) -> IntegerWeights:
    """Move and round again within limits, unless those are None; then correct the bias."""
    weight, bias = layer.weights(plan.index)
    mean, wanted, second, errors = moments.centered()
    exact, rounded = in_memory_order(weight).reshape(len(mean), -1, mean.shape[1]), old
    if limits is not None:
        target = _from_memory_order(exact + exact @ errors @ np.linalg.inv(_damped(second, _RIDGE)), weight)
        rounded = round_with_feedback(
            target, bias, source.scale, limits_of(layer, limits), second, plan.output_scale(layer)
        )
    if correct_bias:
        real = in_memory_order(rounded.real()).reshape(exact.shape)
        bias = bias + (exact @ wanted[..., None] - real @ mean[..., None]).ravel()
    bias = bias + copy_offsets(*layer.weights(plan.index)) * (plan.output_scale(layer) or 0.0)
    return IntegerWeights(rounded.integers, rounded.scales, bias)


class NodewiseRunner:
    """Runs a network node by node over many faces and can stop before any node.

    Values in `constants` of nodes that have not run yet may be replaced. Tensors are kept until the last node that
    reads them has run, a chunk of faces each: the first axis of inner tensors need not be that of the faces.
    """

    def __init__(self, model: onnx.ModelProto, inputs: NDArray[np.generic]) -> None:
        """Start before the first node of a float or QOperator network with one input."""
        self._opset_imports, self._ir_version = list(model.opset_import), model.ir_version
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        chunks = [inputs[start : start + _CHUNK] for start in range(0, len(inputs), _CHUNK)]
        self._values: dict[str, list[NDArray[np.generic]]] = {model.graph.input[0].name: chunks}
        self._nodes = iter(model.graph.node)
        self._readers = Counter(name for node in model.graph.node for name in node.input)
        self._readers.update(value.name for value in model.graph.output)

    def run_until(self, tensor: str) -> NDArray[np.generic]:
        """Run nodes until a tensor is known; give it."""
        while tensor not in self._values:
            self._run(next(self._nodes))
        return np.concatenate(self._values[tensor])

    def _run(self, node: onnx.NodeProto) -> None:
        fed = [name for name in dict.fromkeys(node.input) if name in self._values]
        session = open_model(self._single_node(node, fed))
        names = [value.name for value in session.get_outputs()]
        if not fed:
            self.constants.update(zip(names, session.run(None, {}), strict=True))
            return
        chunks = zip(*(self._values[name] for name in fed), strict=True)
        results = [session.run(None, dict(zip(fed, parts, strict=True))) for parts in chunks]
        self._values.update((name, list(parts)) for name, parts in zip(names, zip(*results, strict=True), strict=True))
        self._readers.subtract(node.input)
        for name in fed:
            if self._readers[name] <= 0:
                del self._values[name]

    def _single_node(self, node: onnx.NodeProto, fed: list[str]) -> onnx.ModelProto:
        inputs = []
        for name in fed:
            chunks = self._values[name]
            same = all(part.shape[1:] == chunks[0].shape[1:] for part in chunks)
            shape = ["n", *chunks[0].shape[1:]][: chunks[0].ndim] if same else [None] * chunks[0].ndim
            kind = helper.np_dtype_to_tensor_dtype(chunks[0].dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, shape))
        constants = [
            numpy_helper.from_array(self.constants[name], name) for name in set(node.input) if name in self.constants
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "node", inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=self._opset_imports, ir_version=self._ir_version)
