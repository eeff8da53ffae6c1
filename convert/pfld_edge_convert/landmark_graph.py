"""Brings any ONNX network that maps one image to landmarks into the form of ours.

That form is the canonical one (`canonical_form`) with the input ``(N, 3, S, S)`` float32 and one output ``(N, 2 * P)``:
x0 y0 x1 y1 ... as fractions of the crop. Outputs are read in the words of `pfld-edge contract --find`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfld_edge_convert.calibration import sample_crops
from pfld_edge_convert.contract_fields import Told, changed_contract, contract_of_graph
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.model_file import copied, open_model, run_model
from pfld_edge_convert.passes.base import GraphIndex, attribute, drop_unused, graph_inputs, subgraphs, with_outputs
from pfld_edge_convert.passes.canonical_form import (
    BATCH,
    canonical_form,
    random_inputs,
    with_image_size,
    without_functions,
)
from pfld_edge_convert.quantization.plan import QUANTIZED
from pfld_edge_runtime import Contract, LandmarkScheme, prepare_input
from pfld_edge_runtime.arrays import Float32Array

ORDERS = POINT_BY_POINT, AXIS_BY_AXIS, WITH_DEPTH, HEAT_MAPS = "x0 y0 x1 y1", "x0 x1 y0 y1", "x0 y0 z0", "heat maps"
"""How an output lists landmarks."""
SPACES = {"0..1": (1.0, 0.0), "-1..1": (0.5, 0.5), "pixels": (0.0, 0.0)}
"""Factor and offset that make fractions of the crop of a coordinate; the factor of pixels is 1 / S."""

_SMALLEST_MAP = 5
"""Rows of heat maps: ``(N, P, 2)`` and ``(N, P, 3)`` are coordinates."""
_SHARPNESS = (1, 2, 4, 8, 16, 32, 64, 128)
_OFF_CENTRE, _EXTENT = 0.2, (0.35, 1.3)
"""Of landmarks in crops of the portraits: the largest distance of their box from the centre, and its longer side."""
_FUSED = frozenset({"FusedConv", "FusedGemm", "FusedMatMul"})
"""Layers of files that onnxruntime's optimizer wrote."""
_SAME_ORDER = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_NEAR, _NEAR_SHARPENED = 1.0, 0.75
"""Pixels of a heat map by which a soft-argmax may miss the maximum to be taken for its reading: on average; of nine
in ten points where the maps must be sharpened, whose floor draws it to the middle."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Which output holds the landmarks, and how: of `ORDERS` and `SPACES`; None is to be found out."""

    output: str | None = None
    order: str | None = None
    space: str | None = None


@dataclass(frozen=True, slots=True)
class LandmarkGraph:
    """A network in our form, its contract without fingerprint, and what was assumed of it, a sentence each."""

    model: onnx.ModelProto
    contract: Contract
    notes: tuple[str, ...]


def landmark_graph(
    model: onnx.ModelProto,
    name: str,
    values: Mapping[str, Told],
    base: Contract | None = None,
    reading: Reading | None = None,
) -> LandmarkGraph:
    """Bring a network into our form.

    Args:
        model: Left as it is.
        name: Of its file, for messages.
        values: Fields of the contract (`changed_contract`), before what `base` says. ``landmarks`` may be a number of
            points, of whose order nothing is known then.
        base: What is known of the network; all fields but the input size, layout and dtype are told by `values` where
            None.
        reading: Of the output; the rest is found on the bundled portraits.

    Raises:
        ConvertError: The network is not one of an image, a field of its contract is missing, its output can't be told
            or read, or a node can't be brought to canonical form.
        ModelContractError: A field is one that no runtime can obey.
    """
    told, model = reading or Reading(), without_functions(model)
    if QUANTIZED.intersection(node.op_type for node in model.graph.node) or (base and base.quantization != "none"):
        raise ConvertError(f"{name} is quantized already; convert the float network that it was made from")
    if fused := {node.op_type for node in model.graph.node if node.domain.endswith(".nchwc") or node.op_type in _FUSED}:
        raise ConvertError(
            f"{name} was optimized by onnxruntime ({', '.join(sorted(fused))}); convert the file that it was made from"
        )
    if base is not None and base.end_to_end:
        raise ConvertError(f"{name} is an end-to-end graph: convert the file without .e2e in its name")
    if (side := str(values.get("input_size", ""))).isdecimal():
        model = with_image_size(model, int(side)) or model
    given, model = model, in_float32(model)
    shapes = output_shapes(model, name)
    listed = ", ".join(f"{output} {shape}" for output, shape in shapes.items())
    known = _contract(model, name, values, base, listed)
    _check_input(model, known, name)
    ask = "give the right --landmarks" if "landmarks" in values else "give the network of that contract"
    output, order = _output(shapes, known.landmarks.num_landmarks, told, f"{name} has the outputs {listed}", ask)
    cut = _cut(model, output, shapes[output])
    if given is not model:
        _check_precision(with_outputs(given, output), cut, name)
    graph = _fed_as_ours(canonical_form(cut), known)
    contract = known.replace(layout="NCHW", input_dtype="float32", fingerprint=None)
    samples = np.asarray(prepare_input(sample_crops(contract), contract), np.float32)
    notes = []
    if order == HEAT_MAPS:
        graph, sharpness = _soft_argmax(graph, samples, contract.landmarks.num_landmarks)
        notes.append(f"a soft-argmax reads the heat maps {output}" + (f", times {sharpness}" if sharpness > 1 else ""))
        order, told = POINT_BY_POINT, replace(told, space=told.space or "0..1")
    columns = _coordinates(order, contract.landmarks.num_landmarks)
    space = told.space or _space(run_model(graph, samples).reshape(len(samples), -1)[:, columns], contract.input_size)
    if space is None and base is None:
        find = f" with `pfld-edge contract {name} --find`" if name.lower().endswith(".onnx") else ""
        raise ConvertError(
            f"{name}: its output {output} is no face's landmarks on the bundled portraits, in 0..1, -1..1 or pixels; "
            f"check the other options{find}, or give --output-space"
        )
    if space not in (None, "0..1"):
        notes.append(f"{output} is read as coordinates in {space}")
    factor, offset = SPACES[space or "0..1"]
    graph = _as_fractions(graph, columns, factor or 1 / contract.input_size, offset)
    return LandmarkGraph(graph, _with_wide_points(graph, contract, samples), tuple(notes))


def output_shapes(model: onnx.ModelProto, name: str) -> dict[str, tuple[int, ...]]:
    """Shape of one face's outputs, without the batch, by running a black image: few files tell them.

    Raises:
        ConvertError: The network doesn't take one image of three colours, or doesn't run.
    """
    inputs = graph_inputs(model)
    shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    found = [[dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim] for value in inputs]
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ConvertError(f"{name}: a landmark network takes one image (N, 3, S, S) or (N, S, S, 3), not {found}")
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in (TensorProto.FLOAT, TensorProto.UINT8):
        raise ConvertError(
            f"{name}: its input is {TensorProto.DataType.Name(kind).lower()}; export it with one of float32 or uint8"
        )
    if not all(shape[1:]):
        raise ConvertError(f"{name}: the size of its input {found[0]} is free; give --input-size")
    _check_inference(model, name)
    image = np.zeros([shape[0] or 1, *shape[1:]], helper.tensor_dtype_to_np_dtype(kind))
    try:
        session = open_model(model)
        outputs = session.run(None, {inputs[0].name: image})
    except Exception as error:
        foreign = {node.op_type for node in model.graph.node if node.domain not in _DOMAINS}
        mend = f"; replace {', '.join(sorted(foreign))} by operators of ONNX" if foreign else ""
        raise ConvertError(f"{name} can't run: {' '.join(str(error).split())[:400]}{mend}") from error
    pairs = zip(session.get_outputs(), outputs, strict=True)
    usable = {value.name: output for value, output in pairs if value.type == "tensor(float)"}
    if not usable:
        raise ConvertError(f"{name}: none of its outputs is float32: export it in float32")
    if not any(np.isfinite(output).all() for output in usable.values()):
        raise ConvertError(
            f"{name} gives NaN or infinity for a black image: its weights are damaged; take another copy"
        )
    found_shapes = {output: np.shape(value) for output, value in usable.items()}
    by_image = {output: dims[1:] for output, dims in found_shapes.items() if dims[:1] == (len(image),)}
    if not by_image:
        listed = ", ".join(f"{output} {dims}" for output, dims in found_shapes.items())
        raise ConvertError(f"{name}: no output has an axis for the images ({listed}); export it without squeezing that")
    return by_image


_OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_LEAST_PRECISION = 1e-2
"""Largest difference that computing in float16 may make: its numbers have 11 bits, of which layers lose some."""


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let a network compute in float32 what it computes in half or double precision; itself where nothing."""
    wide = copied(model)
    return wide if _widen(wide.graph) else model


def _widen(graph: onnx.GraphProto) -> int:
    """Make all tensors of other floating-point types float32; count what was changed."""
    changed = 0
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _OTHER_FLOATS:
            value.type.tensor_type.elem_type, changed = TensorProto.FLOAT, changed + 1
    tensors = [*graph.initializer, *(item.t for node in graph.node for item in node.attribute if item.HasField("t"))]
    for tensor in tensors:
        if tensor.data_type in _OTHER_FLOATS:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
            changed += 1
    for node in graph.node:
        for item in node.attribute:
            if item.name in ("to", "dtype") and item.i in _OTHER_FLOATS:
                item.i, changed = TensorProto.FLOAT, changed + 1
        changed += sum(map(_widen, subgraphs(node)))
    graph.ClearField("value_info")
    return changed


def _check_precision(given: onnx.ModelProto, wide: onnx.ModelProto, name: str) -> None:
    inputs = random_inputs(graph_inputs(given)[0])
    try:
        expected = run_model(given, inputs).astype(np.float64)
    except ConvertError as error:
        raise ConvertError(
            f"{name} can't be compared with itself in float32 ({error}); export it in float32"
        ) from error
    found = run_model(wide, inputs.astype(np.float32) if inputs.dtype.kind == "f" else inputs)
    difference = float(np.abs(found - expected).max())
    if not difference <= _LEAST_PRECISION * max(1.0, float(np.abs(expected).max())):
        raise ConvertError(f"{name}: in float32 its output differs by {difference:.3g}; export it in float32")


_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")


def _check_inference(model: onnx.ModelProto, name: str) -> None:
    """Refuse what gives another answer each time, or one that depends on the other images of the batch."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        tensor = constants.get(node.input[2]) if node.op_type == "Dropout" and len(node.input) > 2 else None
        flag = None if tensor is None else numpy_helper.to_array(tensor)
        if node.op_type in _RANDOM or attribute(node, "training_mode", 0) or (flag is not None and flag.any()):
            raise ConvertError(
                f"{name}: {node.op_type} {node.name or node.output[0]} computes as in training: export the network "
                "after model.eval()"
            )


def _contract(
    model: onnx.ModelProto, name: str, values: Mapping[str, Told], base: Contract | None, outputs: str
) -> Contract:
    told = dict(values)
    if str(points := told.get("landmarks", "")).isdecimal():
        told["landmarks"] = unnamed_scheme(int(str(points)))
    if base is not None:
        return changed_contract(base, told)
    try:
        return contract_of_graph(model, name, {"model": name.partition(".")[0], **told}, _OPTIONS)
    except ConvertError as error:
        raise ConvertError(f"{error} (outputs: {outputs})") from error


_OPTIONS = {
    "color_order": "--color",
    "mean": "--mean",
    "scale": "--scale",
    "margin": "--crop-margin",
    "landmarks": "--landmarks",
    "input_size": "--input-size",
}


def _check_input(model: onnx.ModelProto, contract: Contract, name: str) -> None:
    size = contract.input_size
    expected = [3, size, size] if contract.layout == "NCHW" else [size, size, 3]
    found = [dim.dim_value for dim in graph_inputs(model)[0].type.tensor_type.shape.dim[1:]]
    if found != expected:
        raise ConvertError(f"{name}: its input is (N, {found}), not (N, {expected}) as its contract or the options say")


def unnamed_scheme(count: int) -> LandmarkScheme:
    """Points in an order of which nothing is known.

    Raises:
        ConvertError: Fewer than 2 points.
    """
    if count < 2:
        raise ConvertError(f"a face has at least 2 landmarks, not {count}")
    names = tuple(f"point_{index}" for index in range(count))
    return LandmarkScheme(f"unnamed-{count}", names, tuple(range(count)), (0, 1))


def _with_wide_points(graph: onnx.ModelProto, contract: Contract, samples: Float32Array) -> Contract:
    """Normalize errors of unnamed points by the two that lie farthest apart in width on the bundled portraits."""
    scheme = contract.landmarks
    if scheme != unnamed_scheme(scheme.num_landmarks):
        return contract
    across = run_model(graph, samples).reshape(len(samples), -1, 2)[..., 0].mean(axis=0)
    ends = (int(across.argmin()), int(across.argmax()))
    return contract.replace(landmarks=replace(scheme, normalizing_points=ends if ends[0] != ends[1] else (0, 1)))


def _output(
    shapes: Mapping[str, tuple[int, ...]], points: int, told: Reading, listed: str, ask: str
) -> tuple[str, str]:
    """Choose the output that holds so many points, and their order; `ask` tells what else may help where none does."""
    if told.output is not None and told.output not in shapes:
        raise ConvertError(f"{listed}; none is named {told.output!r}")
    orders = {
        output: next(_orders(shape, points), None) for output, shape in shapes.items() if told.output in (None, output)
    }
    fitting = {output: order for output, order in orders.items() if order is not None}
    if len(fitting) != 1:
        verdict = f"{len(fitting)} of them could be" if fitting else "none of them has the shape of"
        mend = f"{ask}, or export one of ({2 * points},), ({points}, 2) or ({points}, h, w)"
        raise ConvertError(f"{listed}; {verdict} {points} landmarks: {'give --output-name' if fitting else mend}")
    output, order = next(iter(fitting.items()))
    if told.order is not None and (HEAT_MAPS in (order, told.order) or order == WITH_DEPTH) and told.order != order:
        raise ConvertError(f"{listed}; {output} can't be {told.order!r} of {points} landmarks")
    return output, told.order or order


def _orders(shape: tuple[int, ...], points: int) -> Iterator[str]:
    if len(shape) == 3 and points in (shape[0], shape[2]) and sorted(shape)[1] >= _SMALLEST_MAP and min(shape) > 1:
        yield HEAT_MAPS
    size = int(np.prod(shape))
    if size == 2 * points:
        yield AXIS_BY_AXIS if shape == (2, points) and points != 2 else POINT_BY_POINT
    elif size == 3 * points:
        yield WITH_DEPTH


def _cut(model: onnx.ModelProto, output: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Keep one output and what serves it; without notes, which hold paths of the machine that exported it."""
    cut = copied(model)
    batch = graph_inputs(model)[0].type.tensor_type.shape.dim[0]
    kept = helper.make_tensor_value_info(
        output, TensorProto.FLOAT, [batch.dim_value or batch.dim_param or None, *shape]
    )
    cut.graph.ClearField("output")
    cut.graph.output.append(kept)
    for item in [cut, cut.graph, *cut.graph.node, *cut.graph.initializer, *cut.graph.input, *cut.graph.output]:
        item.ClearField("doc_string")
    cut.ClearField("metadata_props")
    drop_unused(cut)
    return cut


def _fed_as_ours(model: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    """Make the input ``(N, 3, S, S)`` float32."""
    graph, size = model.graph, contract.input_size
    image = graph_inputs(model)[0]
    first = []
    if image.type.tensor_type.elem_type == TensorProto.UINT8:
        first.append(helper.make_node("Cast", [""], [f"{image.name}_uint8"], to=TensorProto.UINT8))
    if contract.layout == "NHWC":
        first.append(helper.make_node("Transpose", [""], [f"{image.name}_nhwc"], perm=[0, 2, 3, 1]))
    source = image.name
    for node in reversed(first):
        node.input[0], source = source, node.output[0]
    for node in graph.node:
        node.input[:] = [source if item == image.name else item for item in node.input]
    for node in first:
        graph.node.insert(0, node)
    image.CopyFrom(helper.make_tensor_value_info(image.name, TensorProto.FLOAT, [BATCH, 3, size, size]))
    _cancel_at_input(model)
    return model


def _cancel_at_input(model: onnx.ModelProto) -> None:
    """Remove a Transpose that takes another one back, and casts of pixels to integers and back."""
    index = GraphIndex(model)
    for node in list(model.graph.node):
        before = index.producers.get(node.input[0]) if node.input else None
        if before is None or before.op_type != node.op_type or node.output[0] in index.outputs:
            continue
        if node.op_type == "Transpose":
            orders = attribute(before, "perm", []), attribute(node, "perm", [])
            undone = [orders[0][axis] for axis in orders[1]] == [0, 1, 2, 3]
        else:
            types = attribute(before, "to"), attribute(node, "to")
            undone = node.op_type == "Cast" and types == (TensorProto.UINT8, TensorProto.FLOAT)
        if undone:
            node.input[0] = before.input[0]
            index.bypass(node)
    drop_unused(model)


def _soft_argmax(model: onnx.ModelProto, samples: Float32Array, points: int) -> tuple[onnx.ModelProto, int]:
    """Append the expected position of each heat map's softmax (Sun et al., "Integral Human Pose Regression", 2018).

    Maps that are no logarithms of probabilities, such as peaks of height 1, are multiplied by the least power of two
    with which it lies near the maxima. Gives that factor too, 0 for maps that sum to one each.
    """
    maps = run_model(model, samples)
    model = copied(model)
    if maps.shape[1] != points:
        maps = maps.transpose(0, 3, 1, 2)
        _append(model, "Transpose", perm=[0, 3, 1, 2])
    height, width = maps.shape[2:]
    rows, columns = np.divmod(np.arange(height * width), width)
    grid = np.stack([(columns + 0.5) / width, (rows + 0.5) / height], axis=1)
    flat = maps.reshape(*maps.shape[:2], -1).astype(np.float64)
    best, pixel = grid[flat.argmax(axis=2)], 1 / min(height, width)

    def near(sharpness: int) -> bool:
        weights = np.exp(sharpness * (flat - flat.max(axis=2, keepdims=True)))
        expected = weights / weights.sum(axis=2, keepdims=True) @ grid
        missed = np.linalg.norm(expected - best, axis=2) / pixel
        return bool(missed.mean() <= _NEAR if sharpness == 1 else np.quantile(missed, 0.9) <= _NEAR_SHARPENED)

    summed = bool((flat >= 0).all()) and np.allclose(flat.sum(axis=2), 1, atol=1e-3)
    sharpness = 0 if summed else next(filter(near, _SHARPNESS), 1)
    _append(model, "Reshape", np.array([0, points, height * width]))
    if sharpness > 1:
        _append(model, "Mul", np.array(sharpness, np.float32))
    if sharpness:
        _append(model, "Softmax", axis=2)
    _append(model, "MatMul", grid.astype(np.float32))
    return model, sharpness


def _coordinates(order: str, points: int) -> list[int]:
    """Where x0 y0 x1 y1 ... stand in a face's flat output."""
    step, apart = (1, points) if order == AXIS_BY_AXIS else (3 if order == WITH_DEPTH else 2, 1)
    return [step * point + apart * axis for point in range(points) for axis in (0, 1)]


def _space(found: Float32Array, size: int) -> str | None:
    """Tell the space of coordinates ``(N, 2 * P)`` on the portraits, whose landmarks lie in the middle of the crop."""
    points = found.reshape(len(found), -1, 2).astype(np.float64)
    fitting = []
    for space, (factor, offset) in SPACES.items():
        low, high = (end(points * (factor or 1 / size) + offset, axis=1) for end in (np.min, np.max))
        centred = np.abs(np.median((low + high) / 2, axis=0) - 0.5).max() < _OFF_CENTRE
        if centred and _EXTENT[0] < np.median((high - low).max(axis=1)) < _EXTENT[1]:
            fitting.append(space)
    return fitting[0] if len(fitting) == 1 else None


def _as_fractions(model: onnx.ModelProto, columns: list[int], factor: float, offset: float) -> onnx.ModelProto:
    """Make the output ``(N, 2 * P)`` fractions: by the weights of the last Gemm where there is one, else by nodes."""
    model = copied(model)
    index, tensor = GraphIndex(model), model.graph.output[0].name
    last = index.producers.get(tensor)
    while last is not None and last.op_type in _SAME_ORDER and len(index.consumers[last.input[0]]) == 1:
        last = index.producers.get(last.input[0])
    weights = index.weights(last) if last is not None and last.op_type == "Gemm" else None
    if last is not None and weights is not None:
        weight, bias = weights
        moved = (factor * bias.astype(np.float64) + offset)[columns]
        index.set_weights(last, (factor * weight[columns]).astype(np.float32), moved.astype(np.float32))
        model.graph.output[0].name = last.output[0]
    else:
        if index.rank(tensor) != 2:
            _append(model, "Flatten", axis=1)
        if columns != list(range(len(columns))):
            _append(model, "Gather", np.array(columns, np.int64), axis=1)
        if factor != 1:
            _append(model, "Mul", np.array(factor, np.float32))
        if offset:
            _append(model, "Add", np.array(offset, np.float32))
    output = model.graph.output[0]
    output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, [BATCH, len(columns)]))
    drop_unused(model)
    return model


def _append(model: onnx.ModelProto, kind: str, *constants: NDArray[np.generic], **attributes: Any) -> None:  # noqa: ANN401
    """Append a node to the graph's only output, and make its result the output."""
    index, before = GraphIndex(model), model.graph.output[0].name
    result = f"{before}_{kind.lower()}"
    while result in index.producers:
        result += "_"
    names = [index.add_constant(f"{result}_constant", value) for value in constants]
    model.graph.node.append(helper.make_node(kind, [before, *names], [result], **attributes))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(result, TensorProto.FLOAT, None))
