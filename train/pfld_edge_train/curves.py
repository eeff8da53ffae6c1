"""Draws a run's curves."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve", "draw_curves"]

# Drawn at twice the size at which it is read, for sharp letters.
_WIDTH, _HEIGHT = 1600, 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 150, 40, 90, 70
_PAPER, _INK, _FAINT, _RIM = 255, (40, 40, 40), (225, 225, 225), (90, 90, 90)
_COLORS = ((190, 110, 30), (70, 120, 225))
_FONT, _SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.8


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a panel.

    Attributes:
        name: Said beside its last and its lowest value.
        values: One an epoch; what is not a positive number leaves a gap.
    """

    name: str
    values: Sequence[float]

    @property
    def known(self) -> list[float]:
        """The values that can be drawn."""
        return [value for value in self.values if 0 < value < math.inf]


def draw_curves(epochs: Sequence[int], panels: Sequence[Sequence[Curve]], path: Path) -> None:
    """Write a PNG of panels below each other, their upward axis logarithmic.

    Args:
        epochs: Counted from 0; drawn from 1.
        panels: Curves that share an axis; one without any value is left out.
        path: Replaced whole.
    """
    drawn = [_panel(epochs, curves) for curves in ([c for c in panel if c.known] for panel in panels) if curves] or [
        np.full((_HEIGHT, _WIDTH, 3), _PAPER, np.uint8)
    ]
    encoded = cv2.imencode(".png", np.concatenate(drawn, axis=0))[1]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(encoded.tobytes())
    partial.replace(path)


def _panel(epochs: Sequence[int], curves: Sequence[Curve]) -> NDArray[np.uint8]:
    picture = np.full((_HEIGHT, _WIDTH, 3), _PAPER, np.uint8)
    low = min(min(curve.known) for curve in curves) / 1.03
    high = max(max(curve.known) for curve in curves) * 1.03
    deep = (_HEIGHT - _TOP - _BOTTOM) / math.log(high / low)

    def y_of(value: float) -> float:
        return _TOP + math.log(high / value) * deep

    for tick in _ticks(low, high):
        y = round(y_of(tick))
        cv2.line(picture, (_LEFT, y), (_WIDTH - _RIGHT, y), _FAINT, 2)
        _text(picture, f"{tick:g}", 20, y + 10, _RIM)
    first, last = epochs[0], max(epochs[-1], epochs[0] + 1)
    across = (_WIDTH - _LEFT - _RIGHT) / (last - first)
    for epoch in sorted({first, (first + epochs[-1]) // 2, epochs[-1]}):
        label = str(epoch + 1)
        _text(picture, label, round(_LEFT + across * (epoch - first)) - 8 * len(label), _HEIGHT - 20, _RIM)
    x = 20
    for curve, color in zip(curves, _COLORS, strict=False):
        places = [(_LEFT + across * (e - first), v) for e, v in zip(epochs, curve.values, strict=True)]
        points = np.array([(at, y_of(value)) for at, value in places if 0 < value < math.inf])
        cv2.polylines(picture, [np.round(points * 16).astype(np.int32)], False, color, 4, cv2.LINE_AA, shift=4)
        cv2.circle(picture, tuple(np.round(points[-1]).astype(int).tolist()), 8, color, -1, cv2.LINE_AA)
        legend = f"{curve.name}: {curve.known[-1]:.4g}, lowest {min(curve.known):.4g}"
        _text(picture, legend, x, 50, color)
        x += cv2.getTextSize(legend, _FONT, _SIZE, 2)[0][0] + 60
    _text(picture, "epoch", _WIDTH - _RIGHT - 75, _HEIGHT - 52, _RIM)
    return picture


def _ticks(low: float, high: float) -> list[float]:
    """Some four to ten round numbers of an axis: powers of ten and their halves and fifths, or equal steps."""
    if high / low > 8:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        candidates = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    else:
        power = 10.0 ** math.floor(math.log10((high - low) / 4))
        step = next(power * factor for factor in (5, 2, 1) if power * factor <= (high - low) / 4)
        candidates = [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [value for value in candidates if low <= value <= high]


def _text(picture: NDArray[np.uint8], text: str, x: int, y: int, color: tuple[int, int, int] = _INK) -> None:
    cv2.putText(picture, text, (x, y), _FONT, _SIZE, color, 2, cv2.LINE_AA)
