"""Makes the integer weights of a network, layer by layer, each on what the layers before it really give."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.inference import run_model
from pfld_edge_convert.passes.graph_index import GraphIndex
from pfld_edge_convert.quantization.grid import Grid
from pfld_edge_convert.quantization.layer_input import LayerInput, layer_input, spread_grids
from pfld_edge_convert.quantization.layers import Layer, weighted_layers
from pfld_edge_convert.quantization.moments import Moments, patches
from pfld_edge_convert.quantization.observe import showing
from pfld_edge_convert.quantization.plan import Plan
from pfld_edge_convert.quantization.qoperator import integer_name, weight_constants, write_qoperator
from pfld_edge_convert.quantization.rounding import round_nearest, round_with_feedback
from pfld_edge_convert.quantization.stepwise import Stepwise
from pfld_edge_convert.quantization.weights import IntegerWeights, WeightLimits, in_memory_order

__all__ = ["first_plan", "reconstruct"]

Array = NDArray[np.float64]

_POSITIONS = 48
"""Output positions of a map that are looked at in each face."""

_CHUNK = 32


def first_plan(model: onnx.ModelProto, grids: Mapping[str, Grid], limits: WeightLimits, kept: frozenset[str]) -> Plan:
    """Round every weight to the nearest integer.

    Args:
        model: The float network.
        grids: Of activations.
        limits: Of the processor.
        kept: Names of layers that stay in float (`Layer.output`).
    """
    index = GraphIndex(model)
    spread = spread_grids(index, grids)
    weights = {}
    for layer in weighted_layers(index):
        source = layer_input(index, layer.source, spread)
        is_last = layer.output in index.outputs
        whole = layer.output in spread or (is_last and layer.node.op_type == "Gemm")
        if layer.output not in kept and source is not None and whole:
            weight, bias = _real_weights(index, layer)
            rounded = round_nearest(source.met_by(weight), bias, source.scale, limits_of(layer, limits))
            weights[layer.output] = _with_bias(rounded, source, bias)
    return Plan(spread, weights)


def reconstruct(
    model: onnx.ModelProto,
    plan: Plan,
    faces: NDArray[np.float32],
    inputs: NDArray[np.generic],
    limits: WeightLimits,
    *,
    pixels: bool,
    more: tuple[NDArray[np.float32], NDArray[np.generic]] | None = None,
    feedback: bool = True,
    correct_bias: bool = True,
    advance: Callable[[int], object] | None = None,
) -> Plan:
    """Improve a plan's weights and biases.

    Layer after layer, on the integers that the layers before it give: the weights are rounded with feedback (see
    `round_with_feedback`), and the bias takes up the difference of means to the float network, whatever its cause
    (bias correction; Nagel et al., arXiv 1906.04721, section 4.2, measured instead of derived).

    Args:
        model: The float network.
        plan: Grids, and first weights.
        faces: As the float network takes them.
        inputs: The same faces as the INT8 network takes them.
        limits: Of the processor.
        pixels: As for `write_qoperator`.
        more: Further faces, in both forms, for the layers behind the last map: those see one sample a face, and have
            hundreds of columns.
        feedback: Round with feedback; otherwise weights stay as they are.
        correct_bias: Correct biases; otherwise they stay the float network's.
        advance: Called with 1 after each layer.
    """
    index = GraphIndex(model)
    written = write_qoperator(model, plan, pixels=pixels)
    integer, real = Stepwise(written, inputs), Stepwise(model, faces)
    weights = dict(plan.weights)
    for layer in weighted_layers(index):
        source = layer_input(index, layer.source, plan.grids)
        if layer.output in weights and source is not None:
            found = source.real(integer.run_until(integer_name(written, layer.source)))
            # Means as far as the grids reach: a face that is far outside would pull the biases of all others.
            wanted = source.clipped(np.asarray(real.run_until(layer.source), np.float32))
            moments = _measured(layer, found, wanted)
            if more is not None and layer.node.op_type == "Gemm":
                now = write_qoperator(model, Plan(plan.grids, weights), pixels=pixels)
                found = source.real(run_model(showing(now, integer_name(now, layer.source)), more[1]))
                moments.add(found, source.clipped(run_model(showing(model, layer.source), more[0])))
            weights[layer.output] = _improved(
                index, layer, source, weights[layer.output], moments, limits if feedback else None, correct_bias
            )
            integer.constants.update(weight_constants(layer, weights[layer.output], source.scale))
        if advance is not None:
            advance(1)
    return Plan(plan.grids, weights)


def limits_of(layer: Layer, limits: WeightLimits) -> WeightLimits:
    """A depthwise convolution sums in 32 bits on every processor: only the magnitude is limited."""
    return WeightLimits(limits.largest) if layer.depthwise else limits


def _real_weights(index: GraphIndex, layer: Layer) -> tuple[Array, Array]:
    weights = index.weights(layer.node)
    if weights is None:
        raise ValueError(f"{layer.name} has no constant weights")
    return weights[0].astype(np.float64), weights[1].astype(np.float64)


def _measured(layer: Layer, found: NDArray[np.float32], wanted: NDArray[np.generic]) -> Moments:
    moments = Moments()
    for start in range(0, len(found), _CHUNK):
        pair = [
            patches(
                layer.node,
                np.asarray(values[start : start + _CHUNK], np.float32),
                _POSITIONS,
                np.random.default_rng(start),
                depthwise=layer.depthwise,
            )
            for values in (found, wanted)
        ]
        moments.add(*pair)
    return moments


def _improved(
    index: GraphIndex,
    layer: Layer,
    source: LayerInput,
    old: IntegerWeights,
    moments: Moments,
    limits: WeightLimits | None,
    correct_bias: bool,
) -> IntegerWeights:
    """Round again within limits, or keep the old integers where those are None; then mend the bias."""
    weight, bias = _real_weights(index, layer)
    mean, wanted, second = moments.centered()
    rounded = old
    if limits is not None:
        met, second = source.met_by(weight), source.moments_met(second)
        rounded = round_with_feedback(met, bias, source.scale, limits_of(layer, limits), second)
    if correct_bias:
        exact, real = in_memory_order(weight), in_memory_order(source.in_real_units(rounded.real()))
        if layer.depthwise:
            bias = bias + (exact * wanted).sum(axis=1) - (real * mean).sum(axis=1)
        else:
            bias = bias + exact @ wanted - real @ mean
    return _with_bias(rounded, source, bias)


def _with_bias(weights: IntegerWeights, source: LayerInput, bias: Array) -> IntegerWeights:
    return IntegerWeights(weights.integers, weights.scales, source.bias_with_zeros(bias, weights.real()))
