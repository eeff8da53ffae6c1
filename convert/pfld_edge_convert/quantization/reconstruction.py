"""Layer-wise reconstruction: rounds the weights of each layer given the quantized outputs of the layers before it.

The quantized and the float network run node by node over all faces. At each layer weights are rounded with error
feedback and the bias is corrected, before the next node runs. The quantized network runs as QOperator nodes, whatever
format is written in the end.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pfld_edge_convert.formats.qoperator import integer_name, weight_constants, write_qoperator
from pfld_edge_convert.inference import open_model, run_model
from pfld_edge_convert.quantization.activation_statistics import Moments, input_patches, with_outputs
from pfld_edge_convert.quantization.plan import Grid, Layer, LayerInput, Plan, propagate_grids
from pfld_edge_convert.quantization.weights import (
    IntegerWeights,
    WeightLimits,
    in_memory_order,
    round_nearest,
    round_with_feedback,
)

_POSITIONS = 48
"""Output positions of a map that are sampled in each face."""

_CHUNK = 32
"""Faces in one run of a node."""


def initial_plan(
    model: onnx.ModelProto,
    grids: Mapping[str, Grid],
    limits: WeightLimits,
    float_layers: frozenset[str] = frozenset(),
    *,
    uint8_input: bool = False,
) -> Plan:
    """Make a plan with every weight rounded to the nearest integer.

    Args:
        model: The float network.
        grids: Of activations.
        limits: Of the processor.
        float_layers: Names of layers that stay in float (`Layer.output`).
        uint8_input: See `Plan`.
    """
    plan = Plan(model, grids, uint8_input=uint8_input)
    plan = replace(plan, grids=propagate_grids(plan.index, grids))
    weights = {}
    for layer in plan.layers:
        source = plan.layer_input(layer)
        # QGemm can write float; QLinearConv can't.
        is_last_gemm = layer.output in plan.index.outputs and layer.node.op_type == "Gemm"
        if layer.output not in float_layers and source is not None and (layer.output in plan.grids or is_last_gemm):
            weight, bias = layer.weights(plan.index)
            rounded = round_nearest(source.scaled_weights(weight), bias, source.scale, _limits_of(layer, limits))
            weights[layer.output] = source.with_bias(rounded, bias)
    return replace(plan, weights=weights)


def reconstruct(
    plan: Plan,
    faces: NDArray[np.float32],
    inputs: NDArray[np.generic],
    limits: WeightLimits,
    *,
    more: tuple[NDArray[np.float32], NDArray[np.generic]] | None = None,
    feedback: bool = True,
    correct_bias: bool = True,
    advance: Callable[[int], object] | None = None,
) -> Plan:
    """Improve a plan's weights and biases, layer after layer.

    Weights are rounded with error feedback (`round_with_feedback`); the bias takes up the measured difference of the
    output's mean to the float network's (bias correction, Nagel et al., arXiv 1906.04721, section 4.2).

    Args:
        plan: With first weights.
        faces: As the float network takes them.
        inputs: The same faces as the INT8 network takes them.
        limits: Of the processor.
        more: Further faces, in both forms, for Gemm layers, which get one sample per face.
        feedback: Round with feedback; otherwise integers stay as they are.
        correct_bias: Correct biases; otherwise they stay the float network's.
        advance: Called with 1 after each layer.
    """
    written = write_qoperator(plan)
    integer, real = NodewiseRunner(written, inputs), NodewiseRunner(plan.model, faces)
    weights = dict(plan.weights)
    for layer in plan.layers:
        source = plan.layer_input(layer)
        if layer.output in weights and source is not None:
            found = source.real(integer.run_until(integer_name(written, layer.source)))
            # Clipped to the grids, so that outliers don't shift the biases of all faces.
            wanted = source.clipped(np.asarray(real.run_until(layer.source), np.float32))
            moments = _measured(layer, found, wanted)
            if more is not None and layer.node.op_type == "Gemm":
                now = write_qoperator(replace(plan, weights=weights))
                found = source.real(run_model(with_outputs(now, integer_name(now, layer.source)), more[1]))
                wanted = source.clipped(run_model(with_outputs(plan.model, layer.source), more[0]))
                moments.add(found, wanted)
            weights[layer.output] = _improved(
                plan, layer, source, weights[layer.output], moments, limits if feedback else None, correct_bias
            )
            integer.constants.update(weight_constants(layer, weights[layer.output], source.scale))
        if advance is not None:
            advance(1)
    return replace(plan, weights=weights)


def _limits_of(layer: Layer, limits: WeightLimits) -> WeightLimits:
    """A depthwise convolution sums in 32 bits on every processor: only the magnitude is limited."""
    return WeightLimits(limits.largest) if layer.depthwise else limits


def _measured(layer: Layer, found: NDArray[np.float32], wanted: NDArray[np.float32]) -> Moments:
    """Moments of a layer's inputs at the same random positions of both networks."""
    moments = Moments()
    for start in range(0, len(found), _CHUNK):
        pair = [
            input_patches(
                layer.node,
                values[start : start + _CHUNK],
                _POSITIONS,
                np.random.default_rng(start),
                depthwise=layer.depthwise,
            )
            for values in (found, wanted)
        ]
        moments.add(*pair)
    return moments


def _improved(
    plan: Plan,
    layer: Layer,
    source: LayerInput,
    old: IntegerWeights,
    moments: Moments,
    limits: WeightLimits | None,
    correct_bias: bool,
) -> IntegerWeights:
    """Round again within limits, unless those are None; then correct the bias."""
    weight, bias = layer.weights(plan.index)
    mean, wanted, second = moments.centered()
    rounded = old
    if limits is not None:
        scaled, second = source.scaled_weights(weight), source.scaled_moments(second)
        rounded = round_with_feedback(scaled, bias, source.scale, _limits_of(layer, limits), second)
    if correct_bias:
        exact, real = in_memory_order(weight), in_memory_order(source.unscaled_weights(rounded.real()))
        if layer.depthwise:
            bias = bias + (exact * wanted).sum(axis=1) - (real * mean).sum(axis=1)
        else:
            bias = bias + exact @ wanted - real @ mean
    return source.with_bias(rounded, bias)


class NodewiseRunner:
    """Runs a network node by node over many faces and can stop before any node.

    Tensors are kept for all faces, and only until the last node that reads them has run.

    Attributes:
        constants: Values of the initializers; those of nodes that have not run yet may be replaced.
        values: Tensors that are known and still needed.
    """

    def __init__(self, model: onnx.ModelProto, inputs: NDArray[np.generic]) -> None:
        """Start before the first node.

        Args:
            model: Float or QOperator, with one input; left as it is.
            inputs: All faces, as the network takes them.
        """
        self._opset_imports, self._ir_version = list(model.opset_import), model.ir_version
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.values: dict[str, NDArray[np.generic]] = {model.graph.input[0].name: inputs}
        self._nodes = iter(model.graph.node)
        self._readers = Counter(name for node in model.graph.node for name in node.input)
        self._readers.update(value.name for value in model.graph.output)

    def run_until(self, tensor: str) -> NDArray[np.generic]:
        """Run nodes until a tensor is known; give it."""
        while tensor not in self.values:
            self._run(next(self._nodes))
        return self.values[tensor]

    def _run(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant":
            (value,) = (item.t for item in node.attribute if item.name == "value")
            self.constants[node.output[0]] = numpy_helper.to_array(value)
            return
        fed = [name for name in dict.fromkeys(node.input) if name in self.values]
        session = open_model(self._single_node(node, fed))
        parts = [
            session.run(None, {name: self.values[name][start : start + _CHUNK] for name in fed})[0]
            for start in range(0, len(self.values[fed[0]]), _CHUNK)
        ]
        self.values[node.output[0]] = np.concatenate(parts)
        self._readers.subtract(node.input)
        for name in fed:
            if self._readers[name] <= 0:
                del self.values[name]

    def _single_node(self, node: onnx.NodeProto, fed: list[str]) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(self.values[name].dtype), ["n", *self.values[name].shape[1:]]
            )
            for name in fed
        ]
        constants = [
            numpy_helper.from_array(self.constants[name], name) for name in set(node.input) if name in self.constants
        ]
        graph = helper.make_graph([node], "node", inputs, [onnx.ValueInfoProto(name=node.output[0])], constants)
        return helper.make_model(graph, opset_imports=self._opset_imports, ir_version=self._ir_version)
