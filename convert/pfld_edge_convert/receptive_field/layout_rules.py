"""Operators that move or combine values without looking around: what becomes of receptive fields."""

from dataclasses import replace

import onnx

from pfld_edge_convert.passes.graph_index import GraphIndex, attribute
from pfld_edge_convert.receptive_field.regroup import reshaped
from pfld_edge_convert.receptive_field.trace import FieldTrace, Sources

__all__ = ["along_axis", "elementwise", "permuted", "reshape", "sliced"]


def elementwise(_: GraphIndex, _node: onnx.NodeProto, sources: Sources, _place: int) -> FieldTrace | None:
    """Value by value, of however many tensors."""
    traces = [source for source in sources if source is not None]
    found = traces[0]
    for trace in traces[1:]:
        found = found.joined(trace)
    return found


def along_axis(index: GraphIndex, node: onnx.NodeProto, sources: Sources, _place: int) -> FieldTrace | None:
    """Concat, Split, Softmax, Gather: along channels every position keeps its field."""
    traces = [source for source in sources if source is not None]
    rank = len(traces[0].axes)
    default = -1 if node.op_type in ("Softmax", "LogSoftmax") else 0
    axis = int(attribute(node, "axis", default)) % max(rank, 1)
    if any(trace.axes[axis : axis + 1] != (None,) for trace in traces):
        return FieldTrace.collapsed(traces, rank)
    if node.op_type == "Gather" and index.rank(node.output[0]) != rank:
        found = traces[0]
        return replace(found, axes=tuple(picture for place, picture in enumerate(found.axes) if place != axis))
    return elementwise(index, node, traces, 0)


def sliced(index: GraphIndex, node: onnx.NodeProto, sources: Sources, _place: int) -> FieldTrace | None:
    """Slice with constant starts."""
    source, shape = sources[0], index.shapes.get(node.output[0], ())
    names = ("starts", "ends", "axes", "steps")
    if len(node.input) > 1:
        given = dict(zip(names, (index.constants.get(name) for name in node.input[1:]), strict=False))
    else:
        given = {name: attribute(node, name) for name in names}
    starts = given["starts"]
    if source is None or starts is None or not shape or len(shape) != len(source.axes):
        return None
    axes, steps = given.get("axes"), given.get("steps")
    for place, start in enumerate(starts):
        axis = int(place if axes is None else axes[place]) % len(shape)
        step, new, old = 1 if steps is None else int(steps[place]), shape[axis], index.shapes[node.input[0]][axis]
        if source.axes[axis] is None:
            continue
        if step < 1 or not isinstance(new, int) or not isinstance(old, int):
            return None
        first = int(start) + old if start < 0 else int(start)
        window = (1, step, 1, -first, new)
        source = source.moved(axis, lambda line, window=window: line.windowed(*window))  # type: ignore[misc]
    return source


def reshape(index: GraphIndex, node: onnx.NodeProto, sources: Sources, _place: int) -> FieldTrace | None:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    source = sources[0]
    before, after = index.shapes.get(node.input[0]), index.shapes.get(node.output[0])
    if source is None or before is None or after is None or len(before) != len(source.axes):
        return None
    return reshaped(source, before, after)


def permuted(_: GraphIndex, node: onnx.NodeProto, sources: Sources, _place: int) -> FieldTrace | None:
    """Transpose."""
    source = sources[0]
    if source is None:
        return None
    order = attribute(node, "perm") or list(range(len(source.axes)))[::-1]
    return replace(source, axes=tuple(source.axes[axis] for axis in order))
