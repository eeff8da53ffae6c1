"""Draws a run's loss and validation NME."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

__all__ = ["draw_curves"]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 250, 70, 20, 36, 30
_INK, _FAINT, _BLUE, _RED = (40, 40, 40), (225, 225, 225), (190, 110, 30), (60, 60, 200)


def draw_curves(losses: Sequence[float], errors: Sequence[float], path: Path) -> None:
    """Write a PNG of two panels, one epoch a point.

    Args:
        losses: Training loss in pixels.
        errors: Validation NME.
        path: Replaced whole.
    """
    panels = [
        _panel("training loss, pixels", losses, _BLUE, "{:.2f}"),
        _panel("validation NME", errors, _RED, "{:.4f}"),
    ]
    encoded = cv2.imencode(".png", np.concatenate(panels, axis=0))[1]
    partial = path.with_suffix(".partial")
    partial.write_bytes(encoded.tobytes())
    partial.replace(path)


def _panel(
    name: str, values: Sequence[float], color: tuple[int, int, int], form: str
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    picture = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
    low, high = min(values), max(values)
    spread = max(high - low, 1e-9)
    low, high = low - 0.05 * spread, high + 0.05 * spread
    _text(
        picture,
        f"{name}: {form.format(values[-1])} after {len(values)} epochs, lowest {form.format(min(values))}",
        12,
        22,
    )
    for part in range(5):
        y = round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * part / 4)
        cv2.line(picture, (_LEFT, y), (_WIDTH - _RIGHT, y), _FAINT, 1)
        _text(picture, form.format(high - (high - low) * part / 4), 8, y + 4)
    across = (_WIDTH - _LEFT - _RIGHT) / max(1, len(values) - 1)
    heights = [(high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM) + _TOP for value in values]
    points = np.array([(_LEFT + across * i, y) for i, y in enumerate(heights)])
    cv2.polylines(picture, [np.round(points * 16).astype(np.int32)], False, color, 2, cv2.LINE_AA, shift=4)
    cv2.circle(picture, tuple(np.round(points[-1]).astype(int).tolist()), 4, color, -1, cv2.LINE_AA)
    for epoch in sorted({0, (len(values) - 1) // 2, len(values) - 1}):
        _text(picture, str(epoch + 1), round(_LEFT + across * epoch) - 4, _HEIGHT - 10)
    return picture


def _text(picture: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", text: str, x: int, y: int) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
