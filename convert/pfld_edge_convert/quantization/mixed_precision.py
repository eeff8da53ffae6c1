"""Mixed precision by sensitivity analysis, and the report that a quantized file carries of it.

The layers whose quantization moves landmarks most stay in float. `fusion_coverage` and `face_times` tell what
onnxruntime makes of the file.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pfld_edge_calib.evaluation.drift import FEWEST_FACES, DriftEstimate, Verdict, judge
from pfld_edge_convert.benchmark.timing import Times, take_turns
from pfld_edge_convert.model_file import copied, metadata, open_model, optimized_graph, run_model, set_metadata
from pfld_edge_convert.passes.base import GraphIndex
from pfld_edge_convert.quantization.plan import Grid, Layer, Plan, copy_offsets
from pfld_edge_convert.quantization.ranges import activations
from pfld_edge_runtime import ModelContractError
from pfld_edge_runtime.arrays import BoolArray, Float32Array, Float64Array

Network = TypeVar("Network")

MOST_FLOAT_LAYERS = 12
"""With more layers in float the file is hardly smaller or faster than the float file."""

REPORT_KEY = "pfld_edge.quantization"
"""Key of the report's JSON in an ONNX file's ``metadata_props``."""

_INTEGER = frozenset({"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger"})
_FLOAT = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
_WARM_UP = 10


def deviation_per_face(
    found: Float32Array, expected: Float32Array, normalizing_points: tuple[int, int]
) -> Float64Array:
    """Mean landmark distance of each face, ``(N,)``, as a fraction of the distance of two landmarks of `expected`.

    Landmarks are ``(N, 2 * P)`` or ``(N, P, 2)``; the two are e.g. the outer eye corners.
    """
    one, other = (np.asarray(values, np.float64).reshape(len(values), -1, 2) for values in (found, expected))
    span = np.linalg.norm(np.subtract(*(other[:, point] for point in normalizing_points)), axis=1)
    return np.asarray(np.linalg.norm(one - other, axis=2).mean(axis=1) / np.maximum(span, 1e-9))


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Error of a network in which one layer alone (weights and output, named by `Layer.output`) is in 8 bits.

    `sqnr` is the signal to quantization noise ratio of its output, dB, 0 for the last layer, whose output is float;
    `low` and `high` are the ends of its output's grid, in the units of the equalized network. The mean landmark
    deviations from the float network, over all faces and over the quarter with the largest pose, are fractions of the
    eye distance.
    """

    layer: str
    sqnr: float
    low: float
    high: float
    deviation: float
    large_pose: float


def layer_costs(
    plan: Plan,
    faces: Float32Array,
    normalizing_points: tuple[int, int],
    mirror: Sequence[int],
    advance: Callable[[int], object] = lambda _count: None,
) -> list[LayerCost]:
    """Quantize each layer alone and measure how far the landmarks move; the most expensive layer comes first.

    The plan has all layers in 8 bits; some 30 to 100 faces, ``(N, 3, S, S)`` float32, are enough. The distance of the
    normalizing points is the unit, mirror images of landmarks tell large poses; `advance` is called with 1 per layer.
    """
    expected = run_model(plan.model, faces)
    large_pose = _large_pose(expected, mirror)
    layers = [layer for layer in plan.layers if layer.output in plan.weights]
    noise, means = _noise_and_means(plan, layers, faces)
    costs = []
    for layer in layers:
        found = run_model(_with_rounded_layer(plan, layer, means[layer.source]), faces, fuse_qdq=False)
        moved = deviation_per_face(found, expected, normalizing_points)
        grid = plan.grids.get(layer.output, Grid(0.0, 0))
        deviations = float(moved.mean()), float(moved[large_pose].mean())
        costs.append(LayerCost(layer.output, noise.get(layer.output, 0.0), grid.low, grid.high, *deviations))
        advance(1)
    return sorted(costs, key=lambda cost: -cost.deviation)


@dataclass(frozen=True, slots=True)
class FaceDrift:
    """Relative change of the NME, with its interval: over all faces, and over those of large pose where there are."""

    all: DriftEstimate
    large_pose: DriftEstimate

    def judged(self, allowed: float) -> tuple[Verdict, str]:
        """Compare with a budget: both intervals must lie within, that of large pose where 20 faces or more have one."""
        verdict, reason = judge(self.all, allowed)
        if verdict is Verdict.PASS and self.large_pose.faces >= FEWEST_FACES:
            verdict, reason = judge(self.large_pose, allowed)
            reason = f"faces of large pose: {reason}"
        return verdict, reason


@dataclass(frozen=True, slots=True)
class DriftBudget:
    """Result of the search for layers that stay in float.

    `drifts` are those with 0, 1, 2, ... layers in float; the last one is of the network that was kept.
    """

    allowed: float
    drifts: tuple[FaceDrift, ...]
    float_layers: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the intervals of the drift lie within what was allowed."""
        return self.drifts[-1].judged(self.allowed)[0] is Verdict.PASS


def search_float_layers(
    make: Callable[[tuple[str, ...]], Network],
    costs: Sequence[LayerCost],
    drift: Callable[[Network], FaceDrift],
    allowed: float,
    most: int = MOST_FLOAT_LAYERS,
) -> tuple[Network, DriftBudget]:
    """Give layers back to float, the most expensive first, until the drift's whole interval is within the budget.

    `make` makes the network with the named layers in float (`Quantizer.make`), `drift` measures it on labelled faces
    that were not calibrated on; the costs are ranked by the deviation over all faces plus that over large poses. Gives
    the network with the fewest layers in float that holds the budget, or, where none with `most` or fewer does, the one
    with the least drift.
    """
    ranked = tuple(cost.layer for cost in sorted(costs, key=lambda cost: -(cost.deviation + cost.large_pose)))
    drifts, made = list[FaceDrift](), list[Network]()
    for count in range(min(most, len(ranked)) + 1):
        made.append(make(ranked[:count]))
        drifts.append(drift(made[-1]))
        if drifts[-1].judged(allowed)[0] is Verdict.PASS:
            return made[-1], DriftBudget(allowed, tuple(drifts), ranked[:count])
    best = min(range(len(drifts)), key=lambda count: drifts[count].all.value)
    return made[best], DriftBudget(allowed, (*drifts, drifts[best]), ranked[:best])


def _with_rounded_layer(plan: Plan, layer: Layer, mean: Float64Array) -> onnx.ModelProto:
    """The float network with one layer's weights and output on their grids, its bias corrected for the mean input."""
    # The plan's own integers can't be used: they also compensate the errors of the layers before.
    copy = copied(plan.model)
    index = GraphIndex(copy)
    if layer.source in plan.grids:
        weight, bias = layer.weights(index)
        scales = plan.weights[layer.output].scales.reshape(-1, *(1,) * (weight.ndim - 1)).astype(np.float64)
        rounded = np.rint(weight / scales).clip(-127, 127) * scales
        lost = (weight - rounded).reshape(*rounded.shape[:2], -1).sum(axis=2)
        grouped = lost.reshape(layer.groups, -1, lost.shape[1]) @ mean.reshape(layer.groups, -1, 1)
        node = index.producers[layer.node.output[0]]
        bias = bias + grouped.ravel() + copy_offsets(weight, bias) * (plan.output_scale(layer) or 0.0)
        index.set_weights(node, rounded.astype(np.float32), bias.astype(np.float32))
    if layer.output in plan.grids:
        _round_tensor(copy.graph, layer.output, plan.grids[layer.output])
    copy.graph.ClearField("value_info")
    return copy


def _round_tensor(graph: onnx.GraphProto, tensor: str, grid: Grid) -> None:
    position, node = next((i, node) for i, node in enumerate(graph.node) if tensor in node.output)
    node.output[list(node.output).index(tensor)] = f"{tensor}.exact"
    ends = [f"{tensor}.scale", f"{tensor}.zero"]
    for name, value in zip(ends, (np.float32(grid.scale), np.uint8(grid.zero_point)), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    graph.node.insert(position + 1, helper.make_node("DequantizeLinear", [f"{tensor}.integers", *ends], [tensor]))
    rounded = helper.make_node("QuantizeLinear", [f"{tensor}.exact", *ends], [f"{tensor}.integers"])
    graph.node.insert(position + 1, rounded)


def _noise_and_means(
    plan: Plan, layers: list[Layer], faces: Float32Array
) -> tuple[dict[str, float], dict[str, Float64Array]]:
    """Signal to noise ratio of each layer's rounded output, dB, and means of the channels of each layer's input."""
    source = plan.model.graph.input[0].name
    rounded = [layer.output for layer in layers if layer.output in plan.grids]
    read = [layer.source for layer in layers if layer.source != source]
    power, sums = {name: np.full(2, 1e-30) for name in rounded}, {name: np.zeros(1) for name in read}
    for tensors in activations(plan.model, list(dict.fromkeys(rounded + read)), [faces]):
        for name, grid in ((name, plan.grids[name]) for name in rounded):
            errors = tensors[name] - grid.dequantize(grid.quantize(tensors[name]))
            power[name] += [np.square(values, dtype=np.float64).sum() for values in (tensors[name], errors)]
        for name in sums:
            flat = tensors[name].reshape(*tensors[name].shape[:2], -1)
            sums[name] = sums[name] + flat.mean(axis=2, dtype=np.float64).sum(axis=0)
    noise = {name: float(10 * np.log10(signal / lost)) for name, (signal, lost) in power.items()}
    means = {name: total / len(faces) for name, total in sums.items()}
    return noise, {source: faces.mean(axis=(0, 2, 3), dtype=np.float64), **means}


def _large_pose(landmarks: Float32Array, mirror: Sequence[int]) -> BoolArray:
    """The quarter of faces that differ most from their own mirror image."""
    points = landmarks.reshape(len(landmarks), -1, 2).astype(np.float64)
    centered = points - points.mean(axis=1, keepdims=True)
    flipped = centered[:, list(mirror)] * np.array([-1.0, 1.0])
    differing, size = (np.linalg.norm(values, axis=2).mean(axis=1) for values in (centered - flipped, centered))
    asymmetry = differing / np.maximum(size, 1e-9)
    return np.asarray(asymmetry >= np.quantile(asymmetry, 0.75))


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """How a network was quantized, as its file's metadata say: the range method, and what `Quantizer` tried.

    Costs are those of each layer alone, the most expensive first, measured on so many faces; `float_operators` compute
    in float between layers, each with the reason.
    """

    method: str
    tried: dict[str, float]
    costs: tuple[LayerCost, ...]
    float_layers: tuple[str, ...] = ()
    faces: int = 0
    float_operators: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Compact JSON with three significant digits."""
        tried = {name: _short(value) for name, value in self.tried.items()}
        record = {"method": self.method, "tried": tried, "float": self.float_layers, "faces": self.faces}
        layers = {"layers": [list(map(_short, astuple(cost))) for cost in self.costs]}
        operators = {"float_operators": self.float_operators} if self.float_operators else {}
        return json.dumps({**record, **layers, **operators}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "QuantizationReport":
        """Read what `to_json` wrote; `ModelContractError` where it is damaged."""
        try:
            record = json.loads(text)
            costs = tuple(LayerCost(*row) for row in record["layers"])
            operators = tuple(map(str, record.get("float_operators", ())))
            floating, faces = tuple(record["float"]), int(record["faces"])
            return cls(record["method"], record["tried"], costs, floating, faces, operators)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelContractError(f"the file's quantization report is damaged: {error}") from error


def attach_report(model: onnx.ModelProto, report: QuantizationReport) -> None:
    """Write a report into a model's metadata; it replaces an existing one."""
    set_metadata(model, REPORT_KEY, report.to_json())


def read_report(model: onnx.ModelProto) -> QuantizationReport | None:
    """Read the report from a model's metadata, None without one; `ModelContractError` where it is damaged."""
    text = metadata(model, REPORT_KEY)
    return None if text is None else QuantizationReport.from_json(text)


def _short(value: float | str) -> float | str:
    return value if isinstance(value, str) else float(f"{value:.3g}")


@dataclass(frozen=True, slots=True)
class Coverage:
    """Names of the convolutions and products that onnxruntime runs in 8 bits and in float."""

    integer: tuple[str, ...]
    floating: tuple[str, ...]

    def describe(self) -> str:
        """One line."""
        total = len(self.integer) + len(self.floating)
        floating = f", in float: {', '.join(self.floating)}" if self.floating else ""
        return f"{len(self.integer)} of {total} convolutions and products run in 8 bits{floating}"


def fusion_coverage(model: onnx.ModelProto | Path) -> Coverage:
    """Read from onnxruntime's optimized graph which operators run in 8 bits; `ConvertError` where it refuses."""
    named = [(node.op_type, node.output[0]) for node in optimized_graph(model).graph.node]
    return Coverage(*(tuple(name for kind, name in named if kind in kinds) for kinds in (_INTEGER, _FLOAT)))


def face_times(models: dict[str, onnx.ModelProto], rounds: int = 100) -> dict[str, Times]:
    """Time one face through each network, in turns, so that other load slows all of them alike; one thread."""
    calls = {name: _one_face(model) for name, model in models.items()}
    return take_turns(calls, rounds, warm_up=_WARM_UP)


def _one_face(model: onnx.ModelProto) -> Callable[[], object]:
    session = open_model(model)
    value = session.get_inputs()[0]
    noise = np.random.default_rng(0).integers(0, 256, [1, *value.shape[1:]])
    inputs = noise.astype(np.uint8) if value.type == "tensor(uint8)" else (noise / 127.5 - 1).astype(np.float32)
    return lambda: session.run(None, {value.name: inputs})
