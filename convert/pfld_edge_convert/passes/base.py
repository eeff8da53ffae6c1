"""Graph passes, and the index of a graph by which they find their way.

A pass takes a model and returns a `PassResult`; it never edits the model that it was given. `run_passes` applies
passes in order, checks each result with onnx's checker, and compares its outputs in onnxruntime on sample inputs.
"""

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import numpy_helper

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.model_file import copied, run_model
from pfld_edge_runtime.arrays import Float32Array

Dims = tuple[int | str, ...]
"""A shape: numbers where known, names where symbolic, ``"?"`` where unknown."""


class GraphIndex:
    """Producers, consumers, constants and shapes of a graph's tensors; make a new index after editing nodes.

    A node is among a tensor's consumers once for each use, those inside its subgraphs included; constants are
    initializers and ``Constant`` nodes; shapes, and the element types (``onnx.TensorProto.FLOAT``, ...) of tensors with
    a shape, are what shape inference knows.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.outputs = {value.name for value in self.graph.output}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        for node in self.graph.node:
            self.producers.update(dict.fromkeys(node.output, node))
            for name in read_tensors(node):
                self.consumers[name].append(node)
            value = constant_value(node)
            if value is not None:
                self.constants[node.output[0]] = value
        self.shapes, self.types = _shapes_and_types(model)

    def rank(self, name: str) -> int:
        """Number of axes of a tensor; -1 where unknown."""
        return len(self.shapes[name]) if name in self.shapes else -1

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """The single node that reads a tensor; None where there are more, or where it is an output of the graph."""
        readers = self.consumers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def weights(self, node: onnx.NodeProto) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Weight, output channels first, and bias (or zeros) of a Conv or Gemm.

        None where they aren't constant, and of a Gemm with factors or a transposed input.
        """
        weight = self.constants.get(node.input[1])
        factors = (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0), attribute(node, "transA", 0))
        if weight is None or factors != (1.0, 1.0, 0):
            return None
        if node.op_type == "Gemm" and not attribute(node, "transB", 0):
            weight = weight.T
        if len(node.input) < 3 or not node.input[2]:
            return weight, np.zeros(len(weight), weight.dtype)
        bias = self.constants.get(node.input[2])
        if bias is None or bias.shape != (len(weight),):
            return None
        return weight, bias

    def set_weights(self, node: onnx.NodeProto, weight: NDArray[Any], bias: NDArray[Any]) -> None:
        """Give a Conv or Gemm new weights, in the orientation of `weights`."""
        if node.op_type == "Gemm" and not attribute(node, "transB", 0):
            weight = weight.T
        had_bias = len(node.input) > 2 and bool(node.input[2])
        self.set_constant(node, 1, weight)
        if had_bias or np.any(bias):
            self.set_constant(node, 2, bias)

    def set_constant(self, node: onnx.NodeProto, position: int, value: NDArray[Any]) -> None:
        """Make an input of a node the given constant, under its old name where no other node reads that."""
        while len(node.input) <= position:
            node.input.append("")
        old = node.input[position]
        shared = len(self.consumers[old]) > 1 if old else True
        name = self.add_constant(old or f"{node.output[0]}_input{position}", value, replace=not shared)
        node.input[position] = name

    def add_constant(self, name: str, value: NDArray[Any], *, replace: bool = False) -> str:
        """Add an initializer and return its name, made unique unless it replaces the one of that name."""
        if not replace:
            taken = set(self.constants) | set(self.producers) | {item.name for item in self.graph.input}
            stem, count = name, 1
            while name in taken:
                name, count = f"{stem}_{count}", count + 1
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)  # ascontiguousarray would add an axis
        kept = [item for item in self.graph.initializer if item.name == name]
        if kept:
            kept[0].CopyFrom(tensor)
        else:
            self.graph.initializer.append(tensor)
        self.constants[name] = value
        return name

    def insert(self, before: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
        """Put nodes in front of another one."""
        position = list(self.graph.node).index(before)
        for offset, node in enumerate(nodes):
            self.graph.node.insert(position + offset, node)

    def bypass(self, node: onnx.NodeProto) -> bool:
        """Remove a node whose output is its first input; False where the names of inputs and outputs forbid that.

        This index then is that of the edited graph.
        """
        source, result = node.input[0], node.output[0]
        kept, gone = (source, result) if result not in self.outputs else (result, source)
        if gone == source:
            if source not in self.producers or source in self.outputs:
                return False
            producer = self.producers[result] = self.producers[source]
            producer.output[list(producer.output).index(source)] = result
        _rename_input(self.graph, gone, kept)
        self.graph.node.remove(node)
        readers = self.consumers.pop(source, []) + self.consumers.pop(result, [])
        self.consumers[kept] = [reader for reader in readers if result not in reader.output]
        del self.producers[gone]
        return True


class Nodes:
    """New nodes by their operators, ``nodes.Add(a, b)``, each of which gives the name of its only output.

    Inputs are names of tensors, or values, which become constants. Names begin with a prefix, but for `kept` ones.
    """

    def __init__(self, prefix: str, kept: Collection[str] = ()) -> None:
        """Begin without nodes."""
        self._prefix, self._kept, self._numbers = prefix, kept, count()
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[object, ...], onnx.TensorProto] = {}

    def __getattr__(self, kind: str) -> Callable[..., str]:
        return partial(self._add, kind)

    def _add(self, kind: str, *inputs: str | ArrayLike, output: str = "", **attributes: Any) -> str:  # noqa: ANN401
        name = self._prefix + (output or f"{kind.lower()}_{next(self._numbers)}")
        result = output if output in self._kept else name
        names = [item if isinstance(item, str) else self._constant(np.asarray(item)) for item in inputs]
        self.nodes.append(onnx.helper.make_node(kind, names, [result], name=name, **attributes))
        return result

    def _constant(self, value: NDArray[Any]) -> str:
        """Name of a constant, once for each value."""
        key = (value.dtype, value.shape, value.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(value, f"{self._prefix}constant_{len(self.constants)}")
        return self.constants[key].name

    def subgraph(self, name: str, make: Callable[[], str], kind: int, shape: Sequence[int | str]) -> onnx.GraphProto:
        """A branch of an If: the nodes that a function adds, and the output that it gives."""
        outer, self.nodes = self.nodes, []
        output = onnx.helper.make_tensor_value_info(make(), kind, shape)
        inner, self.nodes = self.nodes, outer
        return onnx.helper.make_graph(inner, name, [], [output])


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:  # noqa: ANN401 - ints, floats, tensors
    """Value of a node's attribute, or the default where it is absent."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Branches of an If, body of a Loop or Scan."""
    return [item.g for item in node.attribute if item.type == onnx.AttributeProto.GRAPH]


def read_tensors(node: onnx.NodeProto) -> list[str]:
    """Inputs of a node, and the tensors around its subgraphs that these read, once for each use."""
    names = [*node.input]
    for graph in subgraphs(node):
        inside = {value.name for value in (*graph.input, *graph.initializer)}
        inside.update(name for inner in graph.node for name in inner.output)
        read = [name for inner in graph.node for name in read_tensors(inner)]
        names += [name for name in (*read, *(value.name for value in graph.output)) if name not in inside]
    return names


def constant_value(node: onnx.NodeProto) -> NDArray[Any] | None:
    """Value of a ``Constant`` node; None of other nodes, and of sparse tensors and strings."""
    if node.op_type != "Constant" or not node.attribute:
        return None
    value, name = onnx.helper.get_attribute_value(node.attribute[0]), node.attribute[0].name
    if name == "value":
        return numpy_helper.to_array(value)
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.array(value, kinds[name]) if name in kinds else None


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that a caller feeds: files of IR version 3 list their initializers among them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def set_attribute(node: onnx.NodeProto, name: str, value: int | list[int]) -> None:
    """Give a node an attribute, in place of one of that name."""
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def become(node: onnx.NodeProto, kind: str, *inputs: str, **attributes: float | list[int]) -> None:
    """Make a node another operator of other inputs and attributes, under its name and with its outputs."""
    node.op_type, node.input[:] = kind, inputs
    node.ClearField("attribute")
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())


def onnx_opset(model: onnx.ModelProto) -> int:
    """Version of the standard operator set that a model uses."""
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)


def spatially_unpadded(node: onnx.NodeProto) -> bool:
    """Whether a Conv or pool certainly looks at nothing outside its input."""
    padding = attribute(node, "auto_pad", b"NOTSET")
    return padding in (b"NOTSET", b"VALID") and not any(attribute(node, "pads", []))


def is_spatial_mean(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a node is a ReduceMean over both spatial axes of a rank-4 tensor."""
    if node.op_type != "ReduceMean" or index.rank(node.input[0]) != 4:
        return False
    axes = index.constants.get(node.input[1]) if len(node.input) > 1 else attribute(node, "axes")
    return axes is not None and sorted(int(axis) % 4 for axis in axes) == [2, 3]


def slice_places(index: GraphIndex, node: onnx.NodeProto) -> tuple[slice, ...] | None:
    """What a Slice in steps of 1 takes of each axis; None of another one, and of one whose inputs aren't constants."""
    names = [*node.input[1:], "", ""][:4]
    rank = index.rank(node.input[0])
    if rank < 0 or any(name and name not in index.constants for name in names):
        return None
    starts, ends = (index.constants[name] for name in names[:2])
    axes, steps = (index.constants.get(name) for name in names[2:])
    if steps is not None and (steps != 1).any():
        return None
    places = [slice(None)] * rank
    for axis, start, end in zip(range(len(starts)) if axes is None else axes, starts, ends, strict=True):
        places[axis] = slice(int(start), int(end))
    return tuple(places)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove nodes and initializers that nothing reads, and recorded shapes, which an edit may have made wrong."""
    graph = model.graph
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(read_tensors(node))
    initializers = [tensor for tensor in graph.initializer if tensor.name in wanted]
    for name, items in (("node", kept[::-1]), ("initializer", initializers), ("input", graph_inputs(model))):
        saved = [type(item).FromString(item.SerializeToString()) for item in items]
        graph.ClearField(name)
        getattr(graph, name).extend(saved)
    graph.ClearField("value_info")


def _rename_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for inner in subgraphs(node):
            _rename_input(inner, old, new)


_SHAPE_OF_INPUT = frozenset({"GroupNormalization", "Gelu", "FastGelu", "QuickGelu", "BiasGelu"})
"""Operators that shape inference doesn't know, of opset 21 or of onnxruntime's own set."""


def _shapes_and_types(model: onnx.ModelProto) -> tuple[dict[str, Dims], dict[str, int]]:
    if any(node.op_type in _SHAPE_OF_INPUT for node in model.graph.node):
        model = copied(model)
        for node in model.graph.node:
            if node.op_type in _SHAPE_OF_INPUT:
                become(node, "Identity", node.input[0])
                node.domain = ""
    # Data propagation lets inference see through the Shape -> Gather -> Reshape chains that exporters leave.
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, Dims] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            types[value.name] = tensor.elem_type
            shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim
            )
    return shapes, types


@dataclass(frozen=True, slots=True)
class PassResult:
    """Result of a pass; the detail says what changed, in one line, and is empty where nothing did.

    `max_difference` is the largest absolute one that it made to an output on the samples of `run_passes`.
    """

    name: str
    model: onnx.ModelProto
    detail: str = ""
    max_difference: float = 0.0

    @property
    def modified(self) -> bool:
        """Whether anything changed."""
        return bool(self.detail)


class GraphPass(ABC):
    """A rewrite of an ONNX graph that keeps what the graph computes, for every batch size.

    The tolerance is the largest absolute difference of the output that it may make: 0 for rewrites that move no
    arithmetic, about 1e-6 for those that reorder sums.
    """

    tolerance: ClassVar[float] = 1e-6

    @property
    def name(self) -> str:
        """That of the class, in the form ``fold-constants``."""
        return re.sub(r"\B(?=[A-Z])", "-", type(self).__name__).lower()

    def __call__(self, model: onnx.ModelProto) -> PassResult:
        """Rewrite a copy of the model; `ConvertError` where this pass can't."""
        copy = copied(model)
        detail = self._rewrite(copy)
        if not detail:
            return PassResult(self.name, model)
        drop_unused(copy)
        return PassResult(self.name, copy, detail)

    @abstractmethod
    def _rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place; return what was done in one line, or an empty string."""


def check_equivalence(
    before: onnx.ModelProto, after: onnx.ModelProto, inputs: Float32Array, tolerance: float, name: str
) -> float:
    """Check with onnxruntime that two models compute the same on ``(N, 3, S, S)`` float32 samples.

    Gives the largest absolute difference of any value of any output. The tolerance is a share of an output's largest
    value where that exceeds 1. A network that multiplies rounding errors, as a sharp soft-argmax does, may change by
    four times what onnxruntime's own rewrites change, and by ten tolerances at most. `name` is that of the step that
    rewrote the model.

    Raises:
        ConvertError: The difference exceeds the tolerance, the outputs' shapes differ, or a model does not run.
    """
    differences = [0.0]
    for output in before.graph.output:
        part = with_outputs(before, output.name)
        one = run_model(part, inputs, optimize=False)
        other = run_model(with_outputs(after, output.name), inputs, optimize=False)
        if one.dtype.kind not in "biuf":  # texts
            continue
        if one.shape != other.shape:
            raise ConvertError(f"{name} changed the output's shape from {one.shape} to {other.shape}")
        differences.append(float(np.abs(one.astype(np.float64) - other).max(initial=0)))
        allowed = tolerance * max(1.0, float(np.abs(one).max(initial=0)))
        if allowed and not differences[-1] <= allowed:
            own = float(np.abs(one.astype(np.float64) - run_model(part, inputs)).max(initial=0))
            allowed = max(allowed, min(4 * own, 10 * allowed))
        if not differences[-1] <= allowed:
            raise ConvertError(f"{name} changed the output by {differences[-1]:.3g}; at most {allowed:.3g} is allowed")
    return max(differences)


def with_outputs(model: onnx.ModelProto, *tensors: str) -> onnx.ModelProto:
    """The part of a network that computes some tensors, which are its outputs."""
    if [value.name for value in model.graph.output] == [*tensors]:
        return model
    part = copied(model)
    part.graph.ClearField("output")
    part.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in tensors)
    drop_unused(part)
    return part


def run_passes(
    model: onnx.ModelProto, passes: Sequence[GraphPass], inputs: Float32Array
) -> tuple[onnx.ModelProto, list[PassResult]]:
    """Apply passes in order to a model and check each on ``(N, 3, S, S)`` float32 samples; give the result of each.

    ConvertError, with its name, where a pass made an invalid model, or changed the output.
    """
    results = []
    for graph_pass in passes:
        result = graph_pass(model)
        if result.modified:
            _check_valid(result.model, graph_pass.name)
            difference = check_equivalence(model, result.model, inputs, graph_pass.tolerance, graph_pass.name)
            result = replace(result, max_difference=difference)
        results.append(result)
        model = result.model
    return model, results


def _check_valid(model: onnx.ModelProto, name: str) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConvertError(f"{name} made an invalid model: {error}") from error
