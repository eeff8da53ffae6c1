"""Which pixels the positions of a tensor depend on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

__all__ = ["FieldLine", "FieldTrace", "Sources"]


@dataclass(frozen=True, slots=True)
class FieldLine:
    """Position i reads the pixels ``i * step + low`` to ``i * step + high`` of one axis of the picture."""

    step: Fraction
    low: Fraction
    high: Fraction
    positions: int

    def windowed(self, kernel: int, stride: int, dilation: int, padding: int, positions: int) -> "FieldLine":
        """Slide a window over the positions, ``padding`` of them before the first."""
        return FieldLine(
            self.step * stride,
            self.low - self.step * padding,
            self.high + self.step * (dilation * (kernel - 1) - padding),
            positions,
        )

    def spread(self, factor: Fraction, positions: int, reach: int = 0) -> "FieldLine":
        """Give each position several, each of which reads it, and its neighbours as far as `reach`."""
        step = self.step / factor
        # Position j reads floor(j / factor), which lies at most 1 - 1 / factor before j / factor.
        return FieldLine(
            step,
            self.low - self.step * (1 - 1 / factor) - self.step * reach,
            self.high + self.step * reach,
            positions,
        )

    def whole(self) -> "FieldLine":
        """Let one position read what all do."""
        return FieldLine(Fraction(0), self.low, self.high + self.step * (self.positions - 1), 1)

    def joined(self, other: "FieldLine") -> "FieldLine":
        """Let each position read what it reads on two paths; where those step differently, what all positions read."""
        if self.step != other.step:
            return self.whole().joined(other.whole())
        positions = max(self.positions, other.positions)
        return FieldLine(self.step, min(self.low, other.low), max(self.high, other.high), positions)


@dataclass(frozen=True, slots=True)
class FieldTrace:
    """What the values of a tensor depend on.

    Attributes:
        lines: Down and across the picture.
        axes: For each axis of the tensor, the axis of the picture that it runs along (0 down, 1 across), or None.
        exact: False behind an operator that isn't known.
    """

    lines: tuple[FieldLine, FieldLine]
    axes: tuple[int | None, ...]
    exact: bool = True

    @classmethod
    def collapsed(cls, traces: Sequence["FieldTrace"], rank: int, *, exact: bool = True) -> "FieldTrace":
        """Let every value depend on all that some tensors depend on."""
        found = traces[0].mixed()
        for trace in traces[1:]:
            other = trace.mixed()
            found = replace(
                found,
                lines=(found.lines[0].joined(other.lines[0]), found.lines[1].joined(other.lines[1])),
                exact=found.exact and other.exact,
            )
        return replace(found, axes=(None,) * rank, exact=found.exact and exact)

    def mixed(self, *picture_axes: int) -> "FieldTrace":
        """Mix all positions along some axes of the picture, both where none is named; the axes stay."""
        chosen = picture_axes or (0, 1)
        down, across = (line.whole() if place in chosen else line for place, line in enumerate(self.lines))
        axes = tuple(None if axis in chosen else axis for axis in self.axes)
        return replace(self, lines=(down, across), axes=axes)

    def moved(self, axis: int, move: Callable[[FieldLine], FieldLine]) -> "FieldTrace":
        """Change the line that an axis of the tensor runs along; nothing where it runs along none."""
        picture_axis = self.axes[axis]
        if picture_axis is None:
            return self
        down, across = (move(line) if place == picture_axis else line for place, line in enumerate(self.lines))
        return replace(self, lines=(down, across))

    def joined(self, other: "FieldTrace") -> "FieldTrace":
        """Combine two tensors value by value; shapes align at their last axes."""
        if len(self.axes) < len(other.axes):
            return other.joined(self)
        padded = (None,) * (len(self.axes) - len(other.axes)) + other.axes
        axes = tuple(mine if mine is not None else theirs for mine, theirs in zip(self.axes, padded, strict=True))
        lines = (self.lines[0].joined(other.lines[0]), self.lines[1].joined(other.lines[1]))
        kept = tuple(axis if axis is not None and lines[axis].step else None for axis in axes)
        return FieldTrace(lines, kept, self.exact and other.exact)


Sources = Sequence[FieldTrace | None]
"""Traces of a node's inputs; None for those that don't depend on the picture."""
