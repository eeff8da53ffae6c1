"""Reads the dataflow of an ONNX graph."""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pfld_edge_convert.errors import ImportOnnxError
from pfld_edge_convert.onnx_import.dataflow import Flow, Geometry

__all__ = ["OnnxWeights", "onnx_flow"]


@dataclass(frozen=True, slots=True)
class OnnxWeights:
    """The numbers of a convolution or linear layer.

    Attributes:
        weight: As torch lays it out: ``(out, in / groups, kh, kw)`` or ``(out, in)``.
        bias: ``(out,)``; zeros where the file has none.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def onnx_flow(model: onnx.ModelProto) -> Flow[OnnxWeights]:
    """Follow the graph from its only output back to its only input.

    Raises:
        ImportOnnxError: The graph computes something that no network of the PFLD family does.
    """
    return _Reader(model).output()


_NO_OPS = frozenset({"Reshape", "Flatten", "Slice", "Identity", "Dropout", "Squeeze"})
_PLAIN_OPS = frozenset({"Relu", "Add", "Concat"})


class _Reader:
    """One pass over a graph; every value is read once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model).graph
        self._graph = graph
        self._arrays = {array.name: numpy_helper.to_array(array) for array in graph.initializer}
        self._arrays |= {
            node.output[0]: numpy_helper.to_array(helper.get_node_attr_value(node, "value"))
            for node in graph.node
            if node.op_type == "Constant"
        }
        values = [*graph.value_info, *graph.input, *graph.output]
        self._shapes = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values
        }
        self._flows: dict[str, Flow[OnnxWeights]] = {}

    def output(self) -> Flow[OnnxWeights]:
        inputs = [value.name for value in self._graph.input if value.name not in self._arrays]
        if len(inputs) != 1 or len(self._graph.output) != 1:
            raise ImportOnnxError(
                f"expected one input and one output, found {len(inputs)} and {len(self._graph.output)}"
            )
        self._flows[inputs[0]] = Flow("input")
        for node in self._graph.node:  # ONNX keeps nodes in an order that computes every input first
            if node.op_type != "Constant":
                self._flows[node.output[0]] = self._read(node)
        return self._flows[self._graph.output[0].name]

    def _read(self, node: onnx.NodeProto) -> Flow[OnnxWeights]:
        layers = {
            "Conv": self._conv,
            "Gemm": self._gemm,
            "AveragePool": self._pool,
            "ReduceMean": self._pool,
            "GlobalAveragePool": self._pool,
        }
        if node.op_type in _NO_OPS:
            return self._no_op(node)
        if node.op_type in layers:
            return layers[node.op_type](node)
        if node.op_type in _PLAIN_OPS:
            return Flow(node.op_type.lower(), self._inputs(node))
        raise ImportOnnxError(f"a {node.op_type} node, which no network of the PFLD family has")

    def _inputs(self, node: onnx.NodeProto) -> tuple[Flow[OnnxWeights], ...]:
        unknown = [name for name in node.input if name not in self._flows]
        if unknown:
            raise ImportOnnxError(f"a {node.op_type} node of a constant, which no network of the PFLD family has")
        return tuple(self._flows[name] for name in node.input)

    def _conv(self, node: onnx.NodeProto) -> Flow[OnnxWeights]:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        weight = self._arrays[node.input[1]]
        strides = set(attributes.get("strides", (1, 1)))
        pads = set(attributes.get("pads", (0, 0, 0, 0)))
        if len(strides) != 1 or len(pads) != 1 or set(attributes.get("dilations", (1,))) != {1}:
            raise ImportOnnxError("a convolution with uneven strides or padding, or with dilation")
        geometry = Geometry(weight.shape, strides.pop(), pads.pop(), attributes.get("group", 1))
        return Flow("conv", (self._flow_of(node.input[0]),), geometry, self._weights(weight, node))

    def _gemm(self, node: onnx.NodeProto) -> Flow[OnnxWeights]:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        scaling = (attributes.get("alpha", 1.0), attributes.get("beta", 1.0), attributes.get("transA", 0))
        if scaling != (1.0, 1.0, 0):
            raise ImportOnnxError("a Gemm node with alpha, beta or a transposed input")
        weight = self._arrays[node.input[1]]
        weight = weight if attributes.get("transB", 0) else weight.T
        return Flow("linear", (self._flow_of(node.input[0]),), Geometry(weight.shape), self._weights(weight, node))

    def _weights(self, weight: NDArray[np.float32], node: onnx.NodeProto) -> OnnxWeights:
        bias = self._arrays[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), np.float32)
        return OnnxWeights(weight, bias)

    def _pool(self, node: onnx.NodeProto) -> Flow[OnnxWeights]:
        """A mean is ours where it leaves one number a channel."""
        shape = self._shapes.get(node.output[0], ())
        if shape[2:] not in ((1, 1), ()):
            raise ImportOnnxError(f"an average over part of the map (output {shape}), expected the whole map")
        return Flow("pool", (self._flow_of(node.input[0]),))

    def _no_op(self, node: onnx.NodeProto) -> Flow[OnnxWeights]:
        """Reshapes never change numbers; a slice is passed over where it cuts nothing away."""
        before, after = self._shapes.get(node.input[0]), self._shapes.get(node.output[0])
        if node.op_type == "Slice" and before != after:
            raise ImportOnnxError(f"a slice from {before} to {after}, expected one that cuts nothing away")
        return self._flow_of(node.input[0])

    def _flow_of(self, name: str) -> Flow[OnnxWeights]:
        if name not in self._flows:
            raise ImportOnnxError("a layer whose input is a constant, which no network of the PFLD family has")
        return self._flows[name]
