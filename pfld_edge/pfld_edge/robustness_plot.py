"""Draws how the error grows under damage, a panel a damage."""

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.robustness import Curve, Robustness

__all__ = ["draw_robustness"]

# Drawn at twice the size at which it is read, for sharp letters.
_PANEL, _ACROSS, _TOP, _LINE = (640, 460), 3, 70, 44
_LEFT, _RIGHT, _ABOVE, _BELOW = 96, 30, 60, 100
_PAPER, _INK, _FAINT, _SOFT = (255, 255, 255), (40, 40, 40), (228, 228, 228), (110, 110, 110)
_COLORS = ((165, 103, 0), (0, 94, 213), (108, 135, 0), (143, 72, 164), (0, 109, 138), (75, 75, 75))
_FONT, _SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.72


def draw_robustness(found: Robustness) -> NDArray[np.uint8]:
    """Draw all curves on one scale, the networks' names above.

    Args:
        found: At least one curve.

    Returns:
        ``(H, W, 3)`` uint8 BGR.
    """
    rows = -(-len(found.curves) // _ACROSS)
    head = _TOP + _LINE * len(found.models)
    picture = np.full((head + rows * _PANEL[1], _ACROSS * _PANEL[0], 3), _PAPER, np.uint8)
    _text(picture, f'NME of {found.faces} faces under damage; "none" is undamaged', 24, 46)
    for index, name in enumerate(found.models):
        y = _TOP + _LINE * index + 10
        cv2.line(picture, (30, y), (90, y), _COLORS[index % len(_COLORS)], 6, cv2.LINE_AA)
        _text(picture, name, 110, y + 10)
    values = np.concatenate([found.clean, *(curve.nmes.ravel() for curve in found.curves)])
    most = float(np.nanmax(values)) * 1.08 if np.isfinite(values).any() else 1.0
    for place, curve in enumerate(found.curves):
        x, y = place % _ACROSS * _PANEL[0], head + place // _ACROSS * _PANEL[1]
        _panel(picture[y : y + _PANEL[1], x : x + _PANEL[0]], found, curve, most)
    return picture


def _panel(panel: NDArray[np.uint8], found: Robustness, curve: Curve, most: float) -> None:
    width, height = _PANEL[0] - _LEFT - _RIGHT, _PANEL[1] - _ABOVE - _BELOW
    count = len(curve.strengths) + 1

    def place(step: int, value: float) -> tuple[int, int]:
        return _LEFT + round(width * step / (count - 1)), _ABOVE + round(height * (1 - value / most))

    _text(panel, curve.name, _LEFT, 40)
    for tick in np.arange(0, most, 0.05).tolist():
        y = place(0, tick)[1]
        cv2.line(panel, (_LEFT, y), (_LEFT + width, y), _FAINT, 2)
        _text(panel, f"{tick:.2f}", 14, y + 8, _SOFT)
    labels, values = curve.with_clean(found.clean)
    for step, name in enumerate(labels):
        _text(panel, name, place(step, 0)[0] - _width(name) // 2, _ABOVE + height + 36, _SOFT)
    _text(panel, curve.unit, _LEFT + (width - _width(curve.unit)) // 2, _ABOVE + height + 76, _SOFT)
    for index, row in enumerate(values.tolist()):
        points = [place(step, value) for step, value in enumerate(row) if np.isfinite(value)]
        line = np.array(points, np.int32)
        # The first network widest: where others lie on it, both are seen.
        thick = max(3, 9 - 2 * index)
        cv2.polylines(
            panel, [line], isClosed=False, color=_COLORS[index % len(_COLORS)], thickness=thick, lineType=cv2.LINE_AA
        )


def _width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _SIZE, 2)[0][0])


def _text(picture: NDArray[np.uint8], text: str, x: int, y: int, color: tuple[int, int, int] = _INK) -> None:
    cv2.putText(picture, text, (x, y), _FONT, _SIZE, color, 2, cv2.LINE_AA)
