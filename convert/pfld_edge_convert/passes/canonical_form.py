"""Canonical form: one opset, a dynamic batch, constants as initializers, no redundant nodes, no BatchNormalization.

`canonical_form` brings any model there; the passes are also the first of `default_passes`. `with_input_shapes` and
`with_image_size` go the other way: they fix free axes of the input, to count costs.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.model_file import copied
from pfld_edge_convert.passes.base import (
    Dims,
    GraphIndex,
    GraphPass,
    attribute,
    become,
    constant_value,
    drop_unused,
    graph_inputs,
    onnx_opset,
    read_tensors,
    run_passes,
    set_attribute,
    slice_places,
    subgraphs,
)
from pfld_edge_convert.passes.channels import EliminateDeadChannels
from pfld_edge_convert.passes.operator_rewrites import (
    ConvToGemm,
    FoldBatchNorm,
    MeanToPool,
    MergeBranches,
    RecognizeHardActivations,
)
from pfld_edge_runtime.arrays import Int64Array

BATCH = "batch"
"""Name of the dynamic axis."""

OPSET = 18
"""The newest set that onnxruntime 1.17 (its limit is 20) and torch's exporter (its least is 18) both speak natively."""

IR_VERSION = 8
"""Of February 2021, the oldest that fits opset 18: read by every onnxruntime since 1.11."""


_PROBES = (61, 53)
"""Batch sizes at which shapes are computed. What is equal for both doesn't depend on the batch."""

_CHECKED_SIDE = 112
"""Height and width at which a network of free image size is checked."""

_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Operators on constants that stay: they hold 8-bit weights."""


def canonical_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """Bring a network with one input ``(N, ...)``, of any opset, to opset 18 with a dynamic batch.

    The result has the same outputs: without functions, without Constant, Identity, Dropout and other nodes without
    effect, without computed shapes where they depend on nothing but the batch, with BatchNormalization folded into
    convolutions, linear layers as Gemm and Split as Slice. Newer opsets than 18 are kept. Every output is compared with
    the original's after each pass, on random inputs.

    Raises:
        ConvertError: The network has several inputs, or a pass can't rewrite it.
    """
    inputs = graph_inputs(model)
    if len(inputs) != 1:
        raise ConvertError(f"expected one input, found {len(inputs)}: {', '.join(value.name for value in inputs)}")
    passes = (UpgradeOpset(), FoldConstants(), MakeBatchDynamic(), SpellLayers(), EliminateIdentity(), FoldBatchNorm())
    # Weights among the inputs, as in files of IR version 3, are not packed by onnxruntime: sums are rounded otherwise.
    cleaned = with_input_shapes(without_functions(model), {})
    drop_unused(cleaned)
    try:
        return run_passes(cleaned, passes, random_inputs(inputs[0]))[0]
    except ConvertError as error:
        batch = next((dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim), 0)
        if not batch:
            raise
        mend = f"the network is fixed to {batch} image{'s' if batch > 1 else ''} a call: export it with a dynamic batch"
        raise ConvertError(f"{mend} ({error})") from error


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the calls of a file's own functions by their nodes; the model itself where it has none.

    Raises:
        ConvertError: A function is of another opset, and can't be brought to the model's.
    """
    try:
        # onnx's version converter would lose them.
        return onnx.inliner.inline_local_functions(model, convert_version=True) if model.functions else model
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        names = ", ".join(function.name for function in model.functions)
        raise ConvertError(f"the functions {names} can't be brought to opset {onnx_opset(model)}: {error}") from error


def random_inputs(value: onnx.ValueInfoProto) -> NDArray[Any]:
    """Two images for an input, or as many as it is fixed to: pixels where it takes integers, else -1..1."""
    tensor = value.type.tensor_type
    batch, *sizes = [dim.dim_value or 0 for dim in tensor.shape.dim] or [1]
    # Two of a dynamic batch; those of a batch of one are fed one by one.
    shape = [batch if batch > 1 else 2, *(size or _CHECKED_SIDE for size in sizes)]
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    random = np.random.default_rng(0)
    inputs: NDArray[Any] = random.integers(0, 256, shape) if dtype.kind in "iu" else random.uniform(-1, 1, shape)
    return inputs.astype(dtype)


class UpgradeOpset(GraphPass):
    """Converts a model of an older opset to `OPSET` with onnx's version converter.

    Rewrite rules:
        - opset < 18: every node is replaced by its equivalent of opset 18 (attributes of Slice become inputs, ...).
        - IR version other than 8: becomes 8; initializers listed among the inputs no longer are.
        - opset > 18 is left as it is: converting down is not always possible.
    """

    tolerance: ClassVar[float] = 0.0

    def _rewrite(self, model: onnx.ModelProto) -> str:
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
    # The converter looks for the initializers of files of IR version 3 among the inputs.
    model.ir_version = max(model.ir_version, IR_VERSION)
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise ConvertError(f"the model can't be brought to opset {OPSET}: {error}") from error


class FoldConstants(GraphPass):
    """Computes what depends on no input, with ONNX's reference implementation.

    Rewrite rules:
        - ``Constant`` becomes an initializer.
        - A node whose inputs are all constants becomes the constant that it computes.
        - ``Shape(x)`` becomes a constant where the shape is known. Shapes with a dynamic batch are computed for two
          batch sizes, and what follows from them (``Gather``, ``Unsqueeze``, ``Concat``, ...) becomes a constant
          where both agree.
        - ``Reshape(x, shape)`` with one size that depends on the batch gets a constant with -1 there, and
          ``Resize(x, sizes=[n, C, h, w])`` a constant ``[h, w]``.
        - ``If`` of a condition that is known then becomes the nodes of its branch.
    """

    tolerance: ClassVar[float] = 1e-6

    def _rewrite(self, model: onnx.ModelProto) -> str:
        details = [self._fold(model)]
        while chosen := _inline_branches(model):
            details += [f"{chosen} If became their branch", self._fold(model)]
        return "; ".join(filter(None, details))

    def _fold(self, model: onnx.ModelProto) -> str:
        index = GraphIndex(model)
        inputs = graph_inputs(model)
        first = inputs[0].type.tensor_type.shape.dim[:1] if inputs else []
        is_dynamic = bool(first) and not first[0].dim_value
        runs = [_computed(model, batch) for batch in (_PROBES if is_dynamic else (0,))]
        (first_values, first_shapes), *others = runs
        targets = {
            output: target for _, shapes in others for output, target in _freed_targets(first_shapes, shapes).items()
        }
        same = {
            name: value
            for name, value in first_values.items()
            if all(_equal(value, run.get(name)) for run, _ in others)
        }
        for node in list(model.graph.node):
            if node.output[0] in same and not index.outputs.intersection(node.output):
                index.add_constant(node.output[0], same[node.output[0]], replace=True)
                model.graph.node.remove(node)
            elif node.op_type == "Reshape" and node.output[0] in targets:
                node.input[1] = index.add_constant(f"{node.output[0]}_shape", targets[node.output[0]])
            elif node.output[0] in targets:
                _resize_alone(index, node, targets[node.output[0]])
        before = len(model.graph.node)
        drop_unused(model)
        count = len(same) + before - len(model.graph.node)
        return f"{count} constant nodes and {len(targets)} computed shapes folded" if count or targets else ""


def _inline_branches(model: onnx.ModelProto) -> int:
    """Replace each If of a constant condition by the nodes of the branch that it takes; count them."""
    index, count = GraphIndex(model), 0
    for node in list(model.graph.node):
        condition = index.constants.get(node.input[0]) if node.op_type == "If" else None
        if condition is None:
            continue
        branch = attribute(node, "then_branch" if condition.item() else "else_branch")
        nodes, tensors = [*branch.node], [*branch.initializer]
        inside = [tensor.name for tensor in tensors] + [name for inner in nodes for name in inner.output if name]
        # Tensors of two branches, of this If or of two, may have one name.
        names = {name: f"{node.output[0]}_{name}" for name in inside}
        _rename(branch, names)
        nodes += [
            onnx.helper.make_node("Identity", [value.name], [output])
            for value, output in zip(branch.output, node.output, strict=True)
        ]
        index.insert(node, *nodes)
        model.graph.initializer.extend(tensors)
        model.graph.node.remove(node)
        count += 1
    return count


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors of a graph and of its subgraphs; nodes, whose names may be taken elsewhere, lose theirs."""
    for tensor in [*graph.initializer, *graph.output]:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.name = ""
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in subgraphs(node):
            _rename(inner, names)


def _equal(one: NDArray[Any], other: NDArray[Any] | None) -> bool:
    return other is not None and one.shape == other.shape and bool((one == other).all())


def _computed(model: onnx.ModelProto, batch: int) -> tuple[dict[str, NDArray[Any]], dict[str, Dims]]:
    """Values of all tensors that depend on no input, for a batch size; 0 where the model's batch is fixed.

    Also the shapes that Reshape and Resize nodes of computed targets then give.
    """
    inputs = graph_inputs(model)
    shapes = {}
    if batch:
        dims = inputs[0].type.tensor_type.shape.dim
        shapes = {inputs[0].name: [batch, *(dim.dim_value for dim in dims[1:])]}
    fixed = with_input_shapes(model, shapes)
    known: dict[str, NDArray[Any]] = {}
    while True:
        # Known targets of Reshape let shape inference see further.
        index, before = GraphIndex(fixed), len(known)
        for node in list(fixed.graph.node):
            value = _value(index, node, onnx_opset(model))
            if value is not None:
                known[node.output[0]] = value
                index.add_constant(node.output[0], value, replace=True)
                fixed.graph.node.remove(node)
        if len(known) == before:
            made = [
                node.output[0]
                for node in fixed.graph.node
                if node.op_type in ("Reshape", "Resize") and known.keys() & node.input[_TARGET[node.op_type] :]
            ]
            shapes_made = {name: index.shapes.get(name, ("?",)) for name in made}
            return known, {
                name: dims for name, dims in shapes_made.items() if not any(isinstance(n, str) for n in dims)
            }


def _value(index: GraphIndex, node: onnx.NodeProto, opset: int) -> NDArray[Any] | None:
    """Value of a node's only output; None where it isn't known."""
    if node.op_type == "Constant":
        return constant_value(node)
    if node.op_type == "Shape":
        shape = index.shapes.get(node.input[0], ("?",))
        start, end = attribute(node, "start", 0), attribute(node, "end", len(shape))
        return None if any(isinstance(size, str) for size in shape) else np.array(shape, np.int64)[start:end]
    inputs = {name: index.constants.get(name) for name in read_tensors(node) if name}
    unknown = not inputs or any(value is None for value in inputs.values())
    if unknown or node.domain not in ("", "ai.onnx") or node.op_type in _KEPT or len(node.output) != 1:
        return None
    from onnx.reference import ReferenceEvaluator  # imports several hundred operators

    values = [onnx.helper.make_tensor_value_info(name, 0, None) for name in (*inputs, node.output[0])]
    graph = onnx.helper.make_graph([node], "node", values[:-1], values[-1:])
    single = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        outputs: Any = ReferenceEvaluator(single).run(None, inputs)
        return np.asarray(outputs[0])
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return None


_TARGET = {"Reshape": 1, "Resize": 3}
"""Which input tells the shape of the output."""


def _freed_targets(one: dict[str, Dims], other: dict[str, Dims]) -> dict[str, Int64Array]:
    """Targets without batch size of the nodes whose result's shape differs in one place, by their output."""
    found = {}
    for output, shape in one.items():
        sizes = np.array([shape, other.get(output, shape)])
        differs = sizes[0] != sizes[1]
        if differs.sum() == 1:
            found[output] = np.where(differs, -1, sizes[0])
    return found


class MakeBatchDynamic(GraphPass):
    """Makes the batch axis of the input and of the outputs dynamic.

    Rewrite rules:
        - ``Reshape(x, constant)`` from ``(N, ...)`` to ``(N, everything else)``, written as ``[N, -1]``, ``[0, -1]`` or
          ``[-1, everything else]``, becomes ``Flatten(axis=1)``.
        - ``Reshape(x, [n, ...])`` with the fixed batch ``n`` first becomes ``Reshape(x, [0, ...])``, where 0 means
          "as in the input"; with another size first, of a graph of fixed batch, ``Reshape(x, [-1, ...])``.
        - ``Resize(x, sizes=[n, C, h, w])`` becomes ``Resize(x, sizes=[h, w], axes=[2, 3])``.
        - ``Concat(c, x)`` of a constant and one image's values becomes ``Pad(x) + [c, 0]``, which broadcasts.
        - ``Gather(Reshape(x, [-1]), 0, 1, 2, ...)`` in the shape of one image's ``x`` becomes ``x``.
        - The first axis of the graph's input and outputs is named ``batch``.
    """

    tolerance: ClassVar[float] = 0.0

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index = GraphIndex(model)
        rules = {"Reshape": _free_reshape, "Resize": _free_resize, "Concat": _free_concat, "Gather": _free_gather}
        changed = sum(rules[node.op_type](index, node) for node in list(model.graph.node) if node.op_type in rules)
        fixed = [value for value in [*model.graph.input, *model.graph.output] if _free_first_axis(value)]
        model.graph.ClearField("value_info")
        if not changed and not fixed:
            return ""
        return f"{changed} nodes and {len(fixed)} inputs and outputs freed of a fixed batch"


def _free_reshape(index: GraphIndex, node: onnx.NodeProto) -> bool:
    target, source = index.constants.get(node.input[1]), index.shapes.get(node.input[0])
    if target is None or source is None or (attribute(node, "allowzero", 0) and not target.all()):
        return False
    result = index.shapes.get(node.output[0])
    if _flattens(source, [int(size) for size in target]):
        become(node, "Flatten", node.input[0], axis=1)
        return True
    if result is None or target[0] in (-1, 0):
        return False
    freed = [0, *map(int, target[1:])]
    if not target[0] == source[0] == result[0]:
        if any(isinstance(size, str) for size in (*source, *result)):
            return False
        freed = [-1, *map(int, result[1:])]
    del node.attribute[:]
    index.set_constant(node, 1, np.array(freed, np.int64))
    return True


def _flattens(source: Dims, target: list[int]) -> bool:
    """Whether a Reshape to this target keeps the first axis and joins all others, whatever the batch."""
    if len(target) != 2 or len(source) < 2 or any(isinstance(size, str) for size in source[1:]):
        return False
    features = int(np.prod([int(size) for size in source[1:]]))
    keeps_batch = target[0] == 0 or target[0] == source[0]
    return (keeps_batch and target[1] in (features, -1)) or (target[0] == -1 and target[1] == features)


def _free_resize(index: GraphIndex, node: onnx.NodeProto) -> bool:
    sizes = index.constants.get(node.input[3]) if len(node.input) > 3 else None
    return sizes is not None and _resize_alone(index, node, sizes)


def _resize_alone(index: GraphIndex, node: onnx.NodeProto, sizes: NDArray[np.integer]) -> bool:
    """Let a Resize name the sizes of height and width alone; False where it changes other axes."""
    source = index.shapes.get(node.input[0], ())
    if len(sizes) != len(source) or tuple(sizes[1:2]) != source[1:2] or (sizes[2:] < 0).any():
        return False
    node.input[3] = index.add_constant(f"{node.output[0]}_sizes", sizes[2:])
    set_attribute(node, "axes", list(range(2, len(source))))
    return True


def _free_concat(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Append a constant, such as the class token of a vision transformer, to each image of a batch."""
    values, axis = [index.constants.get(name) for name in node.input], attribute(node, "axis", 0)
    known = [value for value in values if value is not None]
    place = next((place for place, value in enumerate(values) if value is None), 0)
    shape = index.shapes.get(node.input[place], ())
    fits = known and len(known) == len(values) - 1 and shape[:1] == (1,) and axis % len(shape) != 0
    if not fits or any(isinstance(size, str) for size in shape):
        return False
    zeros = np.zeros([int(size) for size in shape], known[0].dtype)
    parts = [zeros if value is None else value for value in values]
    sizes, pads = [part.shape[axis] for part in parts], np.zeros((2, len(shape)), np.int64)
    pads[0, axis], pads[1, axis] = sum(sizes[:place]), sum(sizes[place + 1 :])
    padded, added = f"{node.output[0]}_padded", np.concatenate(parts, axis=axis)
    bounds = index.add_constant(f"{padded}_pads", pads.ravel())
    index.insert(node, onnx.helper.make_node("Pad", [node.input[place], bounds], [padded]))
    become(node, "Add", padded, index.add_constant(f"{padded}_values", added))
    return True


def _free_gather(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Remove a view of one image's values, as torch.export writes ``as_strided``."""
    flat, order = index.producers.get(node.input[0]), index.constants.get(node.input[1])
    if flat is None or flat.op_type != "Reshape" or order is None or index.rank(node.input[0]) != 1:
        return False
    source = index.shapes.get(flat.input[0], ())
    if attribute(node, "axis", 0) or order.shape != source or source[:1] != (1,):
        return False
    if (order.ravel() != np.arange(order.size)).any():
        return False
    index.consumers[node.input[0]].remove(node)
    index.consumers[flat.input[0]].append(node)
    node.input[0] = flat.input[0]
    return index.bypass(node)


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
        - ``Identity``; ``Dropout`` whose mask is unused (inference); ``Cast`` to the type that its input has.
        - ``Reshape`` or ``Flatten`` whose output has the input's shape, the batch axis included.
        - ``Slice`` with steps of 1 whose output has the input's shape (the published GhostNet files hold 22).
        - ``Concat`` of one tensor; ``Transpose`` with the axes in order; ``Pad`` by zeros all round.
        - ``Relu`` of a ``Relu``; ``Add`` or ``Sub`` of 0, ``Mul`` or ``Div`` by 1.
        - ``AveragePool`` or ``MaxPool`` of 1x1 with stride 1 and no padding.
    """

    tolerance: ClassVar[float] = 0.0

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index = GraphIndex(model)
        removed = [node.op_type for node in list(model.graph.node) if _does_nothing(index, node) and index.bypass(node)]
        counts = ", ".join(f"{removed.count(kind)} {kind}" for kind in sorted(set(removed)))
        return counts and f"{counts} removed"


def _does_nothing(index: GraphIndex, node: onnx.NodeProto) -> bool:
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":
            return not any(index.consumers[name] or name in index.outputs for name in node.output[1:] if name)
        case "Cast":
            return bool(index.types.get(node.input[0], 0) == attribute(node, "to"))
        case "Reshape" | "Flatten":
            return _same_shape(index, node)
        case "Slice":
            return _same_shape(index, node) and slice_places(index, node) is not None
        case "Concat":
            return len(node.input) == 1
        case "Transpose":
            order = list(attribute(node, "perm", []))
            return bool(order) and order == sorted(order)
        case "Pad":
            pads = index.constants.get(node.input[1]) if len(node.input) > 1 else attribute(node, "pads")
            return pads is not None and not np.any(pads)
        case "Relu":
            producer = index.producers.get(node.input[0])
            return producer is not None and producer.op_type == "Relu"
        case "Add" | "Mul" | "Sub" | "Div":
            return _is_neutral(index, node) and _same_shape(index, node)
        case "AveragePool" | "MaxPool":
            return len(node.output) == 1 and _same_shape(index, node) and _looks_at_one_pixel(node)
    return False


def _is_neutral(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether an operation gives one of its two inputs, which is moved to the first place."""
    for place in (1, 0) if node.op_type in ("Add", "Mul") else (1,):
        value = index.constants.get(node.input[place])
        if value is not None and (value == (node.op_type in ("Mul", "Div"))).all():
            node.input[:] = [node.input[1 - place], node.input[place]]
            return True
    return False


def _same_shape(index: GraphIndex, node: onnx.NodeProto) -> bool:
    source, result = index.shapes.get(node.input[0]), index.shapes.get(node.output[0])
    return source is not None and source == result and "?" not in source


def _looks_at_one_pixel(node: onnx.NodeProto) -> bool:
    kernel, strides = attribute(node, "kernel_shape", []), attribute(node, "strides", [1])
    return set(kernel) == {1} and set(strides) == {1} and not any(attribute(node, "pads", []))


class SpellLayers(GraphPass):
    """Writes linear layers and splits by the operators that the other passes and the quantizer know.

    Rewrite rules:
        - ``MatMul(x, W)`` of a rank-2 ``x`` and a constant, with or without ``Add`` of a constant vector, becomes
          ``Gemm(x, W, b)``.
        - ``Split(x)`` into constant sizes becomes a ``Slice`` for each part.
        - Convolutions and pools get their kernel's size and their padding as numbers; ``Conv(Pad(x))`` with zeros all
          round becomes ``Conv(x)`` that pads.
    """

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index, products, splits = GraphIndex(model), 0, 0
        for node in list(model.graph.node):
            if node.op_type == "MatMul" and _as_gemm(index, node):
                products, index = products + 1, GraphIndex(model)
            elif node.op_type == "Split" and _as_slices(index, node):
                splits += 1
        windows = sum(_spell_window(index, node) for node in model.graph.node if node.op_type in _WINDOWS)
        pads = sum(_take_pad(index, node) for node in list(model.graph.node) if node.op_type == "Conv")
        done = f"{products} MatMul became Gemm, {splits} Split became Slice, {windows + pads} paddings spelled"
        return done if products + splits + windows + pads else ""


_WINDOWS = ("Conv", "AveragePool", "MaxPool")


def _spell_window(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Give a convolution or pool its kernel's size, and pads instead of ``auto_pad``."""
    automatic, sizes = attribute(node, "auto_pad", b"NOTSET"), index.shapes.get(node.input[0], ())[2:]
    told = attribute(node, "kernel_shape")
    kernel = told or list(index.shapes.get(node.input[1], ())[2:])
    is_known = bool(kernel) and all(isinstance(size, int) for size in (*sizes, *kernel))
    if (told and automatic == b"NOTSET") or not is_known:
        return False
    set_attribute(node, "kernel_shape", list(kernel))
    if automatic.startswith(b"SAME"):  # onnxruntime takes no dilations with it
        windows = zip(sizes, kernel, attribute(node, "strides", [1] * len(kernel)), strict=True)
        total = [max((ceil(n / by) - 1) * by + k - n, 0) for n, k, by in windows]
        less, more = [n // 2 for n in total], [n - n // 2 for n in total]
        set_attribute(node, "pads", less + more if automatic == b"SAME_UPPER" else more + less)
    if automatic != b"NOTSET":
        node.attribute.remove(next(item for item in node.attribute if item.name == "auto_pad"))
    return True


def _take_pad(index: GraphIndex, node: onnx.NodeProto) -> bool:
    pad = index.producers.get(node.input[0])
    if pad is None or pad.op_type != "Pad" or index.only_consumer(node.input[0]) is None or len(pad.input) > 3:
        return False
    added, value = (index.constants.get(name) if name else None for name in [*pad.input[1:], "", ""][:2])
    is_zero = len(pad.input) < 3 or not pad.input[2] or (value is not None and not value.any())
    if added is None or not is_zero or attribute(pad, "mode", b"constant") != b"constant" or (added < 0).any():
        return False
    before, after = np.split(added.astype(int), 2)
    if before[:2].any() or after[:2].any():
        return False
    own = attribute(node, "pads", [0] * (len(added) - 4))
    set_attribute(node, "pads", [int(a + b) for a, b in zip(own, [*before[2:], *after[2:]], strict=True)])
    return index.bypass(pad)


def _as_gemm(index: GraphIndex, node: onnx.NodeProto) -> bool:
    weight = index.constants.get(node.input[1])
    if weight is None or weight.ndim != 2 or index.rank(node.input[0]) != 2 or weight.dtype != np.float32:
        return False
    node.op_type = "Gemm"
    add = index.only_consumer(node.output[0])
    if add is not None and add.op_type == "Add":
        bias = next((name for name in add.input if name != node.output[0]), "")
        value = index.constants.get(bias)
        if value is not None and value.size == weight.shape[1] == value.shape[-1]:
            node.input.append(index.add_constant(f"{bias}_vector", value.ravel()))
            node.output[0] = add.output[0]
            index.graph.node.remove(add)
    return True


def _as_slices(index: GraphIndex, node: onnx.NodeProto) -> bool:
    axis, shape = attribute(node, "axis", 0), index.shapes.get(node.input[0], ())
    whole = shape[axis] if -len(shape) <= axis < len(shape) else "?"
    if not isinstance(whole, int):
        return False
    sizes = index.constants.get(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    if sizes is None:
        part = -(-whole // len(node.output))
        sizes = np.minimum(part, whole - part * np.arange(len(node.output)))
    ends = np.cumsum(sizes)
    for output, size, end in zip(node.output, sizes, ends, strict=True):
        bounds = [
            index.add_constant(f"{output}_{what}", np.array([value], np.int64))
            for what, value in (("start", end - size), ("end", end), ("axis", axis))
        ]
        name = f"{node.name}_{output}"
        index.insert(node, onnx.helper.make_node("Slice", [node.input[0], *bounds], [output], name=name))
    index.graph.node.remove(node)
    return True


def with_input_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """Copy a model with other shapes of the named inputs, 0 for what stays; recorded shapes of tensors are dropped."""
    fixed = copied(model)
    for value in fixed.graph.input:
        if value.name in shapes:
            for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
                if size:
                    dim.dim_value = size
    fixed.graph.ClearField("value_info")
    return fixed


def with_image_size(model: onnx.ModelProto, side: int) -> onnx.ModelProto | None:
    """Copy a model with the free height and width of its input image set, the batch left free.

    None where nothing but the batch is free, or where the input isn't one image.
    """
    inputs = graph_inputs(model)
    dims = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else []
    if len(dims) != 4 or all(dim.dim_value for dim in dims[1:]):
        return None
    sizes = [dim.dim_value or side for dim in dims[1:]]
    if not any(dim.dim_value for dim in dims[1:]):
        sizes[0] = 3  # free colours too: NCHW, as torch has it
    return with_input_shapes(model, {inputs[0].name: [0, *sizes]})


def default_passes() -> tuple[GraphPass, ...]:
    """All passes, each behind those whose results it needs."""
    return (
        UpgradeOpset(),
        FoldConstants(),
        MakeBatchDynamic(),
        EliminateIdentity(),
        FoldBatchNorm(),
        MergeBranches(),
        RecognizeHardActivations(),
        MeanToPool(),
        EliminateDeadChannels(),
        ConvToGemm(),
    )
