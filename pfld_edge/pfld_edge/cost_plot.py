"""Draws what each layer of an INT8 network costs."""

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_convert.quantization.report import QuantizationReport

__all__ = ["draw_costs"]

_ROW = 18
_LEFT, _BAR, _RIGHT, _TOP = 190, 520, 190, 58
_PAPER, _INK, _FAINT = (255, 255, 255), (40, 40, 40), (225, 225, 225)
_ALL, _TURNED = (190, 120, 40), (90, 170, 250)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_costs(report: QuantizationReport) -> NDArray[np.uint8]:
    """Draw a bar a layer: the landmark deviation that it causes alone, over all faces and over the most turned.

    Args:
        report: At least one layer.

    Returns:
        ``(H, W, 3)`` uint8 BGR.
    """
    height, width = _TOP + _ROW * len(report.costs) + 30, _LEFT + _BAR + _RIGHT
    picture = np.full((height, width, 3), _PAPER, np.uint8)
    most = max(max(cost.deviation, cost.turned) for cost in report.costs) or 1.0
    _text(picture, "landmark deviation with one layer alone in 8 bits (fraction of the eye distance)", 12, 20)
    for column, (name, color) in enumerate((("all faces", _ALL), ("faces that turn most", _TURNED))):
        left = 12 + 110 * column
        cv2.rectangle(picture, (left, 32), (left + 12, 44), color, -1)
        _text(picture, name, left + 18, 43)
    for part in range(5):
        x = _LEFT + _BAR * part // 4
        cv2.line(picture, (x, _TOP - 4), (x, height - 26), _FAINT, 1)
        _text(picture, f"{most * part / 4:.4f}", x - 18, height - 10)
    for row, cost in enumerate(report.costs):
        top = _TOP + row * _ROW
        _text(picture, cost.layer[-24:], 12, top + 11)
        for value, color, offset, thick in ((cost.turned, _TURNED, 1, 12), (cost.deviation, _ALL, 3, 8)):
            end = _LEFT + round(_BAR * value / most)
            cv2.rectangle(picture, (_LEFT, top + offset), (end, top + offset + thick), color, -1)
        note = "float" if cost.layer in report.float_layers else f"{cost.sqnr:.0f} dB" if cost.sqnr else ""
        _text(picture, f"{cost.deviation:.5f}  {note}", _LEFT + _BAR + 12, top + 11)
    return picture


def _text(picture: NDArray[np.uint8], text: str, x: int, y: int) -> None:
    cv2.putText(picture, text, (x, y), _FONT, 0.4, _INK, 1, cv2.LINE_AA)
