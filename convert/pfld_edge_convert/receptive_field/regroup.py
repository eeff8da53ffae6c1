"""Follows receptive fields through reshapes: values keep their row-major order, axes part and merge."""

from dataclasses import replace
from fractions import Fraction

from pfld_edge_convert.passes.graph_index import Dims
from pfld_edge_convert.receptive_field.trace import FieldLine, FieldTrace

__all__ = ["reshaped"]


def reshaped(trace: FieldTrace, before: Dims, after: Dims) -> FieldTrace:
    """Read the same values under another shape; what can't be followed is mixed."""
    found = replace(trace, axes=(None,) * len(after))
    axes: list[int | None] = [None] * len(after)
    for sources, results in _groups(before, after):
        followed = [axis for axis in sources if trace.axes[axis] is not None]
        for axis in followed:
            picture_axis = trace.axes[axis]
            line = None
            if len(followed) == 1 and picture_axis is not None:
                line = _regrouped(trace.lines[picture_axis], axis, sources, results, before, after)
            if line is None or picture_axis is None:
                found = found.mixed(*([] if picture_axis is None else [picture_axis]))
                continue
            down, across = (line if place == picture_axis else old for place, old in enumerate(found.lines))
            found = replace(found, lines=(down, across))
            axes[next(result for result in results if after[result] != 1)] = picture_axis
    return replace(found, axes=tuple(axes))


def _groups(before: Dims, after: Dims) -> list[tuple[list[int], list[int]]]:
    """Part the axes of two shapes into the smallest groups that hold equally many values."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        sources, results = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(sources), j + len(results)
        while _size(before, sources) != _size(after, results):
            if i >= len(before) and j >= len(after):
                break
            if j >= len(after) or (i < len(before) and _number(before, sources) < _number(after, results)):
                sources.append(i)
                i += 1
            else:
                results.append(j)
                j += 1
        groups.append((sources, results))
    return groups


def _size(shape: Dims, axes: list[int]) -> tuple[int, int]:
    """Values, and axes of unknown size: shape inference doesn't always know that a batch stays the same."""
    return _number(shape, axes), sum(isinstance(shape[axis], str) for axis in axes)


def _number(shape: Dims, axes: list[int]) -> int:
    product = 1
    for axis in axes:
        size = shape[axis]
        product *= size if isinstance(size, int) else 1
    return product


def _regrouped(
    line: FieldLine, axis: int, sources: list[int], results: list[int], before: Dims, after: Dims
) -> FieldLine | None:
    """Follow the first axis of a group that isn't 1 to the first of the group it becomes; None for others."""
    leading = [place for place in sources if before[place] != 1][:1]
    results = [place for place in results if after[place] != 1]
    if leading != [axis] or not results or _size(before, sources) != _size(after, results):
        return None
    old, new = before[axis], after[results[0]]
    if not isinstance(old, int) or not isinstance(new, int):
        return line if old == new else None
    factor = Fraction(new, old)
    if factor >= 1:
        return line.spread(factor, new) if factor.denominator == 1 else None
    taken = 1 / factor
    return line.windowed(int(taken), int(taken), 1, 0, new) if taken.denominator == 1 else None
