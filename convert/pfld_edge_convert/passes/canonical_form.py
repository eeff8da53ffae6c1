"""Canonical form: any model is brought to one opset, a dynamic batch and no redundant nodes before other passes run.

`with_input_shapes` and `with_image_size` go the other way: they fix free axes of the input, to count costs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.passes.base import GraphPass
from pfld_edge_convert.passes.graph_index import Dims, GraphIndex, attribute, drop_unused, onnx_opset

__all__ = [
    "BATCH",
    "IR_VERSION",
    "OPSET",
    "EliminateIdentity",
    "MakeBatchDynamic",
    "UpgradeOpset",
    "with_image_size",
    "with_input_shapes",
]

BATCH = "batch"
"""Name of the dynamic axis."""

OPSET = 18
"""The newest set that onnxruntime 1.17 (its limit is 20) and torch's exporter (its least is 18) both speak natively."""

IR_VERSION = 8
"""Of February 2021, the oldest that fits opset 18: read by every onnxruntime since 1.11."""


class UpgradeOpset(GraphPass):
    """Converts a model of an older opset to `OPSET` with onnx's version converter.

    Rewrite rules:
        - opset < 18: every node is replaced by its equivalent of opset 18 (attributes of Slice become inputs, ...).
        - IR version other than 8: becomes 8; initializers listed among the inputs no longer are.
        - opset > 18 is left as it is: converting down is not always possible.
    """

    name: ClassVar[str] = "upgrade-opset"
    tolerance: ClassVar[float] = 0.0

    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place; return what was done."""
        before, ir_before = onnx_opset(model), model.ir_version
        if before >= OPSET and ir_before == IR_VERSION:
            return ""
        if before < OPSET:
            drop_unused(model)
            model.CopyFrom(_converted(model))
        if onnx_opset(model) == OPSET:
            model.ir_version = IR_VERSION
        if (onnx_opset(model), model.ir_version) == (before, ir_before):
            return ""
        return f"opset {before} to {onnx_opset(model)}, IR version {ir_before} to {model.ir_version}"


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except RuntimeError as error:
        raise ConvertError(f"the model can't be brought to opset {OPSET}: {error}") from error


class MakeBatchDynamic(GraphPass):
    """Makes the batch axis of the input and of the outputs dynamic.

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


class EliminateIdentity(GraphPass):
    """Removes nodes that do nothing, where shape inference shows it.

    Rewrite rules (each node's output is replaced by its first input):
        - ``Identity``; ``Dropout`` whose mask is unused (inference).
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


def with_input_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """Copy a model with inputs of certain shapes; recorded shapes of other tensors are dropped.

    Args:
        model: Left as it is.
        shapes: By the input's name; others stay as they are.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name in shapes:
            for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
                dim.dim_value = size
    fixed.graph.ClearField("value_info")
    return fixed


def with_image_size(model: onnx.ModelProto, side: int) -> onnx.ModelProto | None:
    """Copy a model with the free height and width of its input image set, the batch left free.

    Args:
        model: Left as it is.
        side: Pixels.

    Returns:
        None where nothing but the batch is free, or where the input isn't one image.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    dims = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else []
    if len(dims) != 4 or all(dim.dim_value for dim in dims[1:]):
        return None
    filled = with_input_shapes(model, {})
    value = next(item for item in filled.graph.input if item.name == inputs[0].name)
    for dim in value.type.tensor_type.shape.dim[1:]:
        if not dim.dim_value:
            dim.dim_value = side
    return filled
