"""Lets a network that was exported for one face take any number."""

from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.passes.base import GraphPass
from pfld_edge_convert.passes.graph_index import Dims, GraphIndex, attribute

__all__ = ["BATCH", "MakeBatchDynamic"]

BATCH = "batch"
"""Name of the dynamic axis."""


class MakeBatchDynamic(GraphPass):
    """Frees the first axis of the input and of the outputs.

    Rewrite rules:
        - ``Reshape(x, constant)`` from ``(N, ...)`` to ``(N, everything else)``, written as ``[N, -1]``, ``[0, -1]`` or
          ``[-1, everything else]``, becomes ``Flatten(axis=1)``.
        - ``Reshape(x, [n, ...])`` with the fixed batch ``n`` first becomes ``Reshape(x, [0, ...])``, where 0 means
          "as in the input".
        - The first axis of the graph's input and outputs is named ``batch``.
    """

    name: ClassVar[str] = "make-batch-dynamic"
    tolerance: ClassVar[float] = 0.0

    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place; return what was done."""
        index = GraphIndex(model)
        changed = sum(_free_reshape(index, node) for node in model.graph.node if node.op_type == "Reshape")
        fixed = [value for value in [*model.graph.input, *model.graph.output] if _free_first_axis(value)]
        model.graph.ClearField("value_info")
        if not changed and not fixed:
            return ""
        return f"{changed} Reshape and {len(fixed)} inputs and outputs freed of a fixed batch"


def _free_reshape(index: GraphIndex, node: onnx.NodeProto) -> bool:
    target, source = index.constants.get(node.input[1]), index.shapes.get(node.input[0])
    if target is None or source is None or (attribute(node, "allowzero", 0) and not target.all()):
        return False
    if _flattens(source, [int(size) for size in target]):
        node.op_type = "Flatten"
        del node.input[1:]
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("axis", 1))
        return True
    result = index.shapes.get(node.output[0])
    if attribute(node, "allowzero", 0):
        return False
    if result is None or target[0] != source[0] or result[0] != source[0]:
        return False
    freed: NDArray[Any] = np.concatenate([np.zeros(1, target.dtype), target[1:]])
    index.set_constant(node, 1, freed)
    return True


def _flattens(source: Dims, target: list[int]) -> bool:
    """Whether a Reshape to this target keeps the first axis and joins all others, whatever the batch."""
    if len(target) != 2 or len(source) < 2 or any(isinstance(size, str) for size in source[1:]):
        return False
    features = int(np.prod([int(size) for size in source[1:]]))
    keeps_batch = target[0] == 0 or target[0] == source[0]
    return (keeps_batch and target[1] in (features, -1)) or (target[0] == -1 and target[1] == features)


def _free_first_axis(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    if not dims or dims[0].dim_param == BATCH:
        return False
    dims[0].Clear()
    dims[0].dim_param = BATCH
    return True
