"""Runs a network node by node over many faces, so that a layer can be changed once its inputs are known."""

from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pfld_edge_convert.inference import open_model

__all__ = ["Stepwise"]

_CHUNK = 32
"""Faces in one run of a node."""


class Stepwise:
    """A network that stops before any node.

    Tensors are kept for all faces, and only until the last node that reads them has run.

    Attributes:
        constants: Values of the initializers; those of nodes that have not run yet may be replaced.
        values: Tensors that are known and still needed.
    """

    def __init__(self, model: onnx.ModelProto, inputs: NDArray[np.generic], keep: frozenset[str] = frozenset()) -> None:
        """Start before the first node.

        Args:
            model: Float or QOperator, with one input; left as it is.
            inputs: All faces, as the network takes them.
            keep: Tensors that are never let go.
        """
        self._opset_imports, self._ir_version = list(model.opset_import), model.ir_version
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.values: dict[str, NDArray[np.generic]] = {model.graph.input[0].name: inputs}
        self._nodes = list(model.graph.node)
        self._next = 0
        self._readers = Counter(name for node in self._nodes for name in node.input)
        self._readers.update(value.name for value in model.graph.output)
        self._readers.update(keep)

    def run_until(self, tensor: str) -> NDArray[np.generic]:
        """Run nodes until a tensor is known; give it."""
        while tensor not in self.values:
            self._run(self._nodes[self._next])
            self._next += 1
        return self.values[tensor]

    def _run(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant":
            (value,) = (item.t for item in node.attribute if item.name == "value")
            self.constants[node.output[0]] = numpy_helper.to_array(value)
            return
        fed = [name for name in dict.fromkeys(node.input) if name in self.values]
        session = open_model(self._alone(node, fed))
        total = len(self.values[fed[0]])
        parts = [
            session.run(None, {name: self.values[name][start : start + _CHUNK] for name in fed})[0]
            for start in range(0, total, _CHUNK)
        ]
        self.values[node.output[0]] = np.concatenate(parts)
        self._readers.subtract(node.input)
        for name in fed:
            if self._readers[name] <= 0:
                del self.values[name]

    def _alone(self, node: onnx.NodeProto, fed: list[str]) -> onnx.ModelProto:
        """A network of this node only."""
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
