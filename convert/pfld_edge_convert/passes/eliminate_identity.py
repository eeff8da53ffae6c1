"""Removes nodes that pass their input on unchanged."""

from typing import ClassVar

import onnx

from pfld_edge_convert.passes.base import GraphPass
from pfld_edge_convert.passes.graph_index import GraphIndex, attribute

__all__ = ["EliminateIdentity"]


class EliminateIdentity(GraphPass):
    """Removes nodes that do nothing, by what shape inference proves.

    Rewrite rules (each node's output is replaced by its first input):
        - ``Identity``; ``Dropout`` whose mask nobody reads (inference).
        - ``Reshape`` or ``Flatten`` whose output has the input's shape, the batch axis included.
        - ``Slice`` with steps of 1 whose output has the input's shape (the published GhostNet files hold 22).
        - ``Concat`` of one tensor; ``Transpose`` with the axes in order; ``Pad`` by zeros all round.
        - ``Relu`` of a ``Relu``.
        - ``AveragePool`` or ``MaxPool`` of 1x1 with stride 1 and no padding.
    """

    name: ClassVar[str] = "eliminate-identity"
    tolerance: ClassVar[float] = 0.0

    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place; return what was done."""
        removed: list[str] = []
        index = GraphIndex(model)
        for node in list(model.graph.node):
            if _does_nothing(index, node) and index.bypass(node):
                removed.append(node.op_type)
                index = GraphIndex(model)
        counts = ", ".join(f"{removed.count(kind)} {kind}" for kind in sorted(set(removed)))
        return counts and f"{counts} removed"


def _does_nothing(index: GraphIndex, node: onnx.NodeProto) -> bool:
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":
            return not any(index.consumers[name] or name in index.outputs for name in node.output[1:] if name)
        case "Reshape" | "Flatten":
            return _same_shape(index, node)
        case "Slice":
            return _same_shape(index, node) and _steps_are_one(index, node)
        case "Concat":
            return len(node.input) == 1
        case "Transpose":
            order = list(attribute(node, "perm", []))
            return bool(order) and order == sorted(order)
        case "Pad":
            pads = index.constants.get(node.input[1]) if len(node.input) > 1 else None
            return pads is not None and not pads.any()
        case "Relu":
            producer = index.producers.get(node.input[0])
            return producer is not None and producer.op_type == "Relu"
        case "AveragePool" | "MaxPool":
            return len(node.output) == 1 and _same_shape(index, node) and _looks_at_one_pixel(node)
    return False


def _same_shape(index: GraphIndex, node: onnx.NodeProto) -> bool:
    source, result = index.shapes.get(node.input[0]), index.shapes.get(node.output[0])
    return source is not None and source == result and "?" not in source


def _steps_are_one(index: GraphIndex, node: onnx.NodeProto) -> bool:
    if len(node.input) < 5 or not node.input[4]:
        return True
    steps = index.constants.get(node.input[4])
    return steps is not None and bool((steps == 1).all())


def _looks_at_one_pixel(node: onnx.NodeProto) -> bool:
    kernel, strides = attribute(node, "kernel_shape", []), attribute(node, "strides", [1])
    return set(kernel) == {1} and set(strides) == {1} and not any(attribute(node, "pads", []))
