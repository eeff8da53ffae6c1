"""What quantizing each layer costs, the others left in float."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pfld_edge_convert.inference import run_model
from pfld_edge_convert.passes.graph_index import GraphIndex
from pfld_edge_convert.quantization.deviation import deviation_per_face
from pfld_edge_convert.quantization.grid import Grid
from pfld_edge_convert.quantization.layer_input import layer_input
from pfld_edge_convert.quantization.layers import Layer, weighted_layers
from pfld_edge_convert.quantization.observe import tensors_of
from pfld_edge_convert.quantization.plan import Plan

__all__ = ["LayerCost", "layer_costs", "with_rounded_layer"]


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer on its own in 8 bits: its weights, and what it makes.

    Attributes:
        layer: `Layer.output`.
        sqnr: Signal to quantization noise of what it makes, in dB; 0 for the last layer, which makes float.
        low: Lower end of its grid, in the units of the equalized network.
        high: Upper end.
        deviation: Mean landmark deviation from the float network, a fraction of the eye distance.
        turned: The same over the quarter of faces that turn most.
    """

    layer: str
    sqnr: float
    low: float
    high: float
    deviation: float
    turned: float


def layer_costs(
    model: onnx.ModelProto,
    plan: Plan,
    faces: NDArray[np.float32],
    normalizing_points: tuple[int, int],
    mirror: Sequence[int],
    advance: Callable[[int], object] | None = None,
) -> list[LayerCost]:
    """Quantize each layer alone and see how far the landmarks move.

    Args:
        model: The float network that the plan is for.
        plan: Grids and integer weights.
        faces: Some 30 to 100 faces, as the float network takes them.
        normalizing_points: Two landmarks whose distance is the unit.
        mirror: For each landmark its mirror image, to tell turned faces.
        advance: Called with 1 after each layer.

    Returns:
        The most expensive layer first.
    """
    index = GraphIndex(model)
    expected = run_model(model, faces)
    turned = _most_turned(expected, mirror)
    layers = [layer for layer in weighted_layers(index) if layer.output in plan.weights]
    noise = _sqnr(model, [layer.output for layer in layers if layer.output in plan.grids], plan, faces)
    means = _channel_means(model, [layer.source for layer in layers], faces)
    costs = []
    for layer in layers:
        found = run_model(with_rounded_layer(model, layer, plan, means[layer.source]), faces, fuse_qdq=False)
        moved = deviation_per_face(found, expected, normalizing_points)
        grid = plan.grids.get(layer.output, Grid(0.0, 0))
        costs.append(
            LayerCost(
                layer.output,
                noise.get(layer.output, 0.0),
                grid.low,
                grid.high,
                float(moved.mean()),
                float(moved[turned].mean()),
            )
        )
        if advance is not None:
            advance(1)
    return sorted(costs, key=lambda cost: -cost.deviation)


def with_rounded_layer(model: onnx.ModelProto, layer: Layer, plan: Plan, mean: NDArray[np.float64]) -> onnx.ModelProto:
    """The float network with one layer's weights, and the tensor it makes, on their grids.

    Args:
        model: The float network.
        layer: One of its layers.
        plan: Grids and integer weights.
        mean: ``(C,)`` what the layer reads on average: the bias takes up what rounding does to it, as the plan's own
            bias does, which can't be used here because it also makes up for the layers before.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index = GraphIndex(copy)
    node = index.producers[layer.node.output[0]]
    source, weights = layer_input(index, layer.source, plan.grids), plan.weights[layer.output]
    old = index.weights(node)
    if source is not None and old is not None:
        rounded = source.in_real_units(weights.real())
        lost = (old[0] - rounded).reshape(*rounded.shape[:2], -1).sum(axis=2)
        bias = old[1] + (lost[:, 0] * mean if layer.depthwise else lost @ mean)
        index.set_weights(node, rounded.astype(np.float32), bias.astype(np.float32))
    if layer.output in plan.grids:
        _round_tensor(copy, layer.output, plan.grids[layer.output])
    copy.graph.ClearField("value_info")
    return copy


def _round_tensor(model: onnx.ModelProto, tensor: str, grid: Grid) -> None:
    graph = model.graph
    position, node = next((i, node) for i, node in enumerate(graph.node) if tensor in node.output)
    node.output[list(node.output).index(tensor)] = f"{tensor}.exact"
    ends = [f"{tensor}.scale", f"{tensor}.zero"]
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(grid.scale), ends[0]),
            numpy_helper.from_array(np.uint8(grid.zero_point), ends[1]),
        ]
    )
    rounded = helper.make_node("QuantizeLinear", [f"{tensor}.exact", *ends], [f"{tensor}.integers"])
    real = helper.make_node("DequantizeLinear", [f"{tensor}.integers", *ends], [tensor])
    graph.node.insert(position + 1, rounded)
    graph.node.insert(position + 2, real)


def _sqnr(model: onnx.ModelProto, names: list[str], plan: Plan, faces: NDArray[np.float32]) -> dict[str, float]:
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for tensors in tensors_of(model, names, [faces]):
        for name, values in tensors.items():
            grid = plan.grids[name]
            signal[name] += float(np.square(values, dtype=np.float64).sum())
            noise[name] += float(np.square(values - grid.dequantize(grid.quantize(values)), dtype=np.float64).sum())
    return {name: float(10 * np.log10(max(signal[name], 1e-30) / max(noise[name], 1e-30))) for name in names}


def _channel_means(
    model: onnx.ModelProto, names: list[str], faces: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    source = model.graph.input[0].name
    made = [name for name in dict.fromkeys(names) if name != source]
    sums = {name: np.zeros(1) for name in made}
    for tensors in tensors_of(model, made, [faces]):
        for name, values in tensors.items():
            flat = values.reshape(*values.shape[:2], -1)
            sums[name] = sums[name] + flat.mean(axis=2, dtype=np.float64).sum(axis=0)
    means = {name: total / len(faces) for name, total in sums.items()}
    return {source: faces.mean(axis=(0, 2, 3), dtype=np.float64), **means}


def _most_turned(landmarks: NDArray[np.float32], mirror: Sequence[int]) -> NDArray[np.bool_]:
    """The quarter of faces whose mirrored landmarks, put upon themselves, fit worst."""
    points = landmarks.reshape(len(landmarks), -1, 2).astype(np.float64)
    centered = points - points.mean(axis=1, keepdims=True)
    flipped = centered[:, list(mirror)] * np.array([-1.0, 1.0])
    worst = np.linalg.norm(centered - flipped, axis=2).mean(axis=1) / np.linalg.norm(centered, axis=2).mean(axis=1)
    result: NDArray[np.bool_] = worst >= np.quantile(worst, 0.75)
    return result
