"""How far each layer of a network sees: the pixels of the input that one of its values depends on.

Along each axis of the picture, position i of a map reads the pixels ``i * step + low`` to ``i * step + high``; layers
move these numbers, and where paths meet, the farthest of them counts (Araujo et al., "Computing receptive fields of
convolutional neural networks", Distill 2019, section on arbitrary graphs).
"""

from dataclasses import dataclass
from fractions import Fraction

import onnx

from pfld_edge_convert.float_twin import float_twin
from pfld_edge_convert.passes.graph_index import Dims, GraphIndex
from pfld_edge_convert.receptive_field.rules import RULES
from pfld_edge_convert.receptive_field.trace import FieldLine, FieldTrace

__all__ = ["ReceptiveField", "receptive_fields"]


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """What one value of a layer's output sees.

    Attributes:
        height: Pixels of the picture from top to bottom; of a map, as if the picture had no end.
        width: Pixels from left to right.
        steps: Pixels from the field of one position to the next, down and across; 0 where all positions see the same.
        first: First pixel, down and across, of position 0; negative where padding is seen.
        is_map: Whether different positions see different pixels; without it the size is what of the picture is seen.
        whole: Whether every value depends on the whole picture.
        exact: False where an operator that isn't known was taken to mix everything.
    """

    height: int
    width: int
    steps: tuple[float, float]
    first: tuple[float, float]
    is_map: bool
    whole: bool
    exact: bool

    def describe(self) -> str:
        """Size as tables give it: ``47``, ``47 x 31`` or ``all``."""
        if self.whole and not self.is_map:
            return "all" if self.exact else "all?"
        return str(self.height) if self.height == self.width else f"{self.height} x {self.width}"


def receptive_fields(model: onnx.ModelProto) -> dict[str, ReceptiveField]:
    """Find the field of every tensor that depends on the picture.

    Args:
        model: Float or quantized; the only input that isn't a constant must be a picture, ``(N, C, H, W)`` or
            ``(N, H, W, C)``, of known size.

    Returns:
        Fields by the tensor's name; empty for other inputs.
    """
    twin = float_twin(model)
    index = GraphIndex(twin)
    pictures = [value.name for value in twin.graph.input if value.name not in index.constants]
    start = _picture(index.shapes.get(pictures[0], ())) if len(pictures) == 1 else None
    if start is None:
        return {}
    traces = {pictures[0]: start.trace}
    for node in twin.graph.node:
        sources = [traces.get(name) for name in node.input]
        if not any(sources) or node.op_type in ("Shape", "Size"):
            continue
        rule = RULES.get(node.op_type)
        for place, name in enumerate(node.output):
            found = rule(index, node, sources, place) if rule else None
            if found is None:
                rank = max(index.rank(name), 0)
                found = FieldTrace.collapsed([source for source in sources if source], rank, exact=False)
            traces[name] = found
    return {name: _field(trace, start.size) for name, trace in traces.items()}


@dataclass(frozen=True, slots=True)
class _Picture:
    """Where tracing begins: a picture, its height and width."""

    trace: FieldTrace
    size: tuple[int, int]


def _picture(shape: Dims) -> _Picture | None:
    """Begin with a picture, ``(N, C, H, W)`` or ``(N, H, W, C)``; None for other shapes and unknown sizes."""
    if len(shape) != 4:
        return None
    last = shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
    height, width = shape[1:3] if last else shape[2:]
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    one, none = Fraction(1), Fraction(0)
    lines = (FieldLine(one, none, none, height), FieldLine(one, none, none, width))
    return _Picture(FieldTrace(lines, (None, 0, 1, None) if last else (None, None, 0, 1)), (height, width))


def _field(trace: FieldTrace, size: tuple[int, int]) -> ReceptiveField:
    extents = []
    for line, pixels in zip(trace.lines, size, strict=True):
        end = Fraction(pixels - 1)
        low, high = (line.low, line.high) if _is_map(line) else (max(line.low, Fraction(0)), min(line.high, end))
        extents.append(int(high - low) + 1)
    down, across = trace.lines
    return ReceptiveField(
        extents[0],
        extents[1],
        (float(down.step), float(across.step)),
        (float(down.low), float(across.low)),
        any(_is_map(line) for line in trace.lines),
        all(_sees_all(line, pixels) for line, pixels in zip(trace.lines, size, strict=True)),
        trace.exact,
    )


def _is_map(line: FieldLine) -> bool:
    return bool(line.step) and line.positions > 1


def _sees_all(line: FieldLine, pixels: int) -> bool:
    """Whether the first position reaches the picture's end, and the last one its beginning."""
    return line.high >= pixels - 1 and line.low + line.step * (line.positions - 1) <= 0
