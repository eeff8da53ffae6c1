"""Operators that look at several positions: how they move receptive fields."""

from dataclasses import replace
from fractions import Fraction

import onnx

from pfld_edge_convert.passes.graph_index import GraphIndex, attribute
from pfld_edge_convert.receptive_field.trace import FieldLine, FieldTrace, Sources

__all__ = ["blocked", "reduced", "resized", "transposed_windows", "windowed"]


def windowed(index: GraphIndex, node: onnx.NodeProto, sources: Sources, _place: int) -> FieldTrace | None:
    """Conv and pools."""
    source, shape = sources[0], index.shapes.get(node.output[0], ())
    before = index.shapes.get(node.input[0], ())
    kernel = attribute(node, "kernel_shape") or list(index.shapes.get(node.input[1], ()))[2:]
    if source is None or len(shape) != 4 or len(before) != 4 or len(kernel) != 2:
        return None
    pads = attribute(node, "pads", [0, 0, 0, 0])
    auto = attribute(node, "auto_pad", b"NOTSET")
    for place in range(2):
        old, new = before[2 + place], shape[2 + place]
        if not isinstance(old, int) or not isinstance(new, int):
            return None
        size, stride, dilation = (
            int(kernel[place]),
            int(attribute(node, "strides", [1, 1])[place]),
            int(attribute(node, "dilations", [1, 1])[place]),
        )
        padding = int(pads[place])
        if auto in (b"SAME_UPPER", b"SAME_LOWER"):
            total = max((new - 1) * stride + dilation * (size - 1) + 1 - old, 0)
            padding = total // 2 if auto == b"SAME_UPPER" else total - total // 2

        def slide(line: FieldLine, window: tuple[int, ...] = (size, stride, dilation, padding, new)) -> FieldLine:
            return line.windowed(*window)

        source = source.moved(2 + place, slide)
    return source


def transposed_windows(index: GraphIndex, node: onnx.NodeProto, sources: Sources, _place: int) -> FieldTrace | None:
    """ConvTranspose: output o reads the inputs i with ``o = i * stride - padding + dilation * t``."""
    source, shape = sources[0], index.shapes.get(node.output[0], ())
    kernel = attribute(node, "kernel_shape") or list(index.shapes.get(node.input[1], ()))[2:]
    if source is None or len(shape) != 4 or len(kernel) != 2 or attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
        return None
    for place in range(2):
        new = shape[2 + place]
        if not isinstance(new, int):
            return None
        stride = int(attribute(node, "strides", [1, 1])[place])
        reach = int(attribute(node, "dilations", [1, 1])[place]) * (int(kernel[place]) - 1)
        padding = int(attribute(node, "pads", [0, 0, 0, 0])[place])

        def widen(line: FieldLine, window: tuple[int, int, int, int] = (stride, reach, padding, new)) -> FieldLine:
            stride, reach, padding, positions = window
            step = line.step / stride
            return FieldLine(step, line.low + step * (padding - reach), line.high + step * padding, positions)

        source = source.moved(2 + place, widen)
    return source


def resized(index: GraphIndex, node: onnx.NodeProto, sources: Sources, _place: int) -> FieldTrace | None:
    """Resize: nearest neighbours read one position, linear and cubic ones more."""
    source = sources[0]
    before, after = index.shapes.get(node.input[0], ()), index.shapes.get(node.output[0], ())
    if source is None or len(before) != len(after) or len(after) != len(source.axes):
        return None
    reach = {b"nearest": 0, b"linear": 1, b"cubic": 2}.get(attribute(node, "mode", b"nearest"), 2)
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        if source.axes[axis] is None:
            continue
        if not isinstance(old, int) or not isinstance(new, int):
            return None
        factor, positions = Fraction(new, old), new
        if factor < 1 and reach == 0:
            reach = 1

        def spread(line: FieldLine, by: tuple[Fraction, int, int] = (factor, positions, reach)) -> FieldLine:
            return line.spread(*by)

        source = source.moved(axis, spread)
    return source


def blocked(index: GraphIndex, node: onnx.NodeProto, sources: Sources, _place: int) -> FieldTrace | None:
    """SpaceToDepth and DepthToSpace."""
    source, shape = sources[0], index.shapes.get(node.output[0], ())
    block = int(attribute(node, "blocksize", 1))
    if source is None or len(shape) != 4:
        return None
    for axis in (2, 3):
        new = shape[axis]
        if not isinstance(new, int):
            return None

        def move(line: FieldLine, positions: int = new) -> FieldLine:
            if node.op_type == "SpaceToDepth":
                return line.windowed(block, block, 1, 0, positions)
            return line.spread(Fraction(block), positions)

        source = source.moved(axis, move)
    return source


def reduced(index: GraphIndex, node: onnx.NodeProto, sources: Sources, _place: int) -> FieldTrace | None:
    """Means and other sums over axes, global pools."""
    source = sources[0]
    if source is None:
        return None
    rank = len(source.axes)
    if node.op_type.startswith("Global"):
        axes = list(range(2, rank))
    else:
        given = index.constants.get(node.input[1]) if len(node.input) > 1 else attribute(node, "axes")
        axes = [int(axis) % rank for axis in given] if given is not None else list(range(rank))
    followed = [axis for axis in (source.axes[place] for place in axes) if axis is not None]
    found = source.mixed(*followed) if followed else source
    if attribute(node, "keepdims", 1):
        return found
    return replace(found, axes=tuple(axis for place, axis in enumerate(found.axes) if place not in axes))
