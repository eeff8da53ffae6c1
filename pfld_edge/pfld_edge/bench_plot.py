"""Draws times with their intervals."""

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge.bench_report import figure
from pfld_edge_convert.benchmark.record import BenchReport, Timing
from pfld_edge_convert.benchmark.verdict import Verdict

__all__ = ["draw_timings"]

# Drawn at twice the size at which it is read, for sharp letters.
_ROW, _GROUP, _TOP, _BOTTOM = 56, 60, 120, 90
_BAR, _NOTE = 900, 640
_PAPER, _INK, _FAINT, _RIM = (255, 255, 255), (40, 40, 40), (225, 225, 225), (90, 90, 90)
_COLORS = {
    Verdict.REFERENCE: (170, 170, 170),
    Verdict.STEADY: (190, 140, 60),
    Verdict.FASTER: (110, 170, 60),
    Verdict.SLOWER: (80, 120, 225),
    Verdict.SAME: (190, 140, 60),
    Verdict.TOO_NOISY: (215, 215, 215),
}
_FONT, _SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.8


def draw_timings(report: BenchReport) -> NDArray[np.uint8]:
    """Draw a bar a file, grouped by threads and faces: the median, the 95 % interval as a whisker, the ratio in words.

    Args:
        report: At least one model.

    Returns:
        ``(H, W, 3)`` uint8 BGR.
    """
    models, groups = report.models, range(len(report.models[0].timings))
    left = 50 + max(_width(_short(model.name)) for model in models)
    height = _TOP + len(groups) * (_GROUP + _ROW * len(models)) + _BOTTOM
    picture = np.full((height, left + _BAR + _NOTE, 3), _PAPER, np.uint8)
    most = max(timing.median_ms.high / timing.batch for model in models for timing in model.timings) or 1.0
    unit = _step(most)
    scale = _BAR / (unit * -(-most // unit))
    _text(picture, _title(report), 24, 44)
    _text(picture, "milliseconds a face, median and 95 % interval; shorter is faster", 24, 88, _RIM)
    for tick in range(round(_BAR / scale / unit) + 1):
        x = left + round(tick * unit * scale)
        cv2.line(picture, (x, _TOP - 10), (x, height - _BOTTOM + 10), _FAINT, 2)
        label = f"{tick * unit:g}"
        _text(picture, label, x - _width(label) // 2, height - _BOTTOM + 50, _RIM)
    y = _TOP
    for place in groups:
        first = models[0].timings[place]
        plural = ("" if first.threads == 1 else "s", "" if first.batch == 1 else "s")
        _text(picture, f"{first.threads} thread{plural[0]}, {first.batch} face{plural[1]}", 24, y + 40, _RIM)
        y += _GROUP
        for model in models:
            timing = model.timings[place]
            _text(picture, _short(model.name), 24, y + 38)
            _bar(picture, timing, left, y, scale)
            y += _ROW
    return picture


def _bar(picture: NDArray[np.uint8], timing: Timing, left: int, top: int, scale: float) -> None:
    value, low, high = (
        left + round(scale * time / timing.batch)
        for time in (timing.median_ms.value, timing.median_ms.low, timing.median_ms.high)
    )
    middle = top + _ROW // 2
    cv2.rectangle(picture, (left, top + 8), (value, top + _ROW - 8), _COLORS[timing.verdict], cv2.FILLED)
    cv2.line(picture, (low, middle), (high, middle), _INK, 3)
    for end in (low, high):
        cv2.line(picture, (end, middle - 9), (end, middle + 9), _INK, 3)
    _text(picture, _words(timing), high + 20, middle + 10)


def _words(timing: Timing) -> str:
    if timing.verdict is Verdict.TOO_NOISY:
        return "too noisy to tell"
    words = f"{figure(timing.median_ms.value / timing.batch)} ms"
    if timing.ratio is not None:
        words += f", {timing.ratio.value:.2f} x ({timing.ratio.low:.2f} to {timing.ratio.high:.2f})"
    return words


def _title(report: BenchReport) -> str:
    where = f"{report.environment.processor}, onnxruntime {report.environment.onnxruntime}"
    return where if report.settings.reference is None else f"{where}; ratios to {_short(report.settings.reference)}"


def _step(most: float) -> float:
    """Round number that divides the axis into four to ten parts."""
    power = 10.0 ** np.floor(np.log10(most / 4))
    return float(next(power * factor for factor in (5, 2, 1) if power * factor <= most / 4))


def _short(name: str) -> str:
    """The end of a long name: what tells files apart stands there."""
    return name if len(name) <= 40 else f"...{name[-37:]}"


def _width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _SIZE, 2)[0][0])


def _text(picture: NDArray[np.uint8], text: str, x: int, y: int, color: tuple[int, int, int] = _INK) -> None:
    cv2.putText(picture, text, (x, y), _FONT, _SIZE, color, 2, cv2.LINE_AA)
