"""Writes ONNX nodes as one writes expressions."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["NodeWriter"]


class NodeWriter:
    """Collects nodes and constants whose names share a prefix, so that they meet no name of another graph.

    Attributes:
        prefix: Before every name, e.g. ``crop/``.
        nodes: In the order in which they were written, which is an order in which they can run.
        constants: Initializers.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant; returns its tensor's name."""
        full = self.prefix + name
        if all(tensor.name != full for tensor in self.constants):
            self.constants.append(numpy_helper.from_array(np.array(value, order="C"), full))
        return full

    def numbers(self, *values: int) -> str:
        """Add a row of int64 numbers, which axes, sizes and indices are."""
        return self.constant("int_" + "_".join(map(str, values)), np.array(values, np.int64))

    def add(self, name: str, operator: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401 - ONNX's attribute types
        """Add a node of the standard operator set; returns its output's name, which is the node's too."""
        full = self.prefix + name
        self.nodes.append(helper.make_node(operator, list(inputs), [full], full, **attributes))
        return full

    def cast(self, name: str, source: str, to: int) -> str:
        """Add a change of type, `to` one of ``onnx.TensorProto``'s."""
        return self.add(name, "Cast", source, to=to)

    def pick(self, name: str, source: str, index: int, axis: int) -> str:
        """Add ``source[..., index, ...]``, the axis gone."""
        scalar = self.constant(f"index_{index}", np.array(index, np.int64))
        return self.add(name, "Gather", source, scalar, axis=axis)
