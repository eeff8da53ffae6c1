"""The error under damage, one small chart a damage."""

from html import escape

import numpy as np

from pfld_edge.html_report.markup import chart, details, legend, number, table, text_at, tone
from pfld_edge_calib.robustness import Curve, Robustness

__all__ = ["robustness_charts"]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 300.0, 200.0, 40.0, 12.0, 12.0, 40.0


def robustness_charts(found: Robustness) -> str:
    """All charts on one scale, and the numbers behind them."""
    values = np.concatenate([found.clean, *(curve.nmes.ravel() for curve in found.curves)])
    most = float(np.nanmax(values)) * 1.08 if np.isfinite(values).any() else 1.0
    charts = "".join(
        f"<figure>{_chart(found, curve, most)}<figcaption>{escape(curve.name)}</figcaption></figure>"
        for curve in found.curves
    )
    rows = [
        [escape(curve.name), escape(model), *(number(value) for value in row)]
        for curve in found.curves
        for model, row in zip(found.models, curve.nmes.tolist(), strict=True)
    ]
    head = ("damage", "network", "mild", "", "", "strong")
    numbers = details("the numbers", table("NME under damage, from mild to strong", head, rows))
    return f'{legend(found.models)}<div class="charts">{charts}</div>{numbers}'


def _chart(found: Robustness, curve: Curve, most: float) -> str:
    count = len(curve.strengths) + 1
    inner, rise = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(step: int, value: float) -> tuple[float, float]:
        return _LEFT + inner * step / (count - 1), _TOP + rise * (1 - value / most)

    parts = []
    for tick in (0.0, 0.05, 0.1, 0.15, 0.2):
        if tick < most:
            y = place(0, tick)[1]
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(text_at(_LEFT - 5, y + 4, f"{tick:.2f}", "tick", "end"))
    labels, values = curve.with_clean(found.clean)
    for step, name in enumerate(labels):
        parts.append(text_at(place(step, 0)[0], _HEIGHT - _BOTTOM + 16, name, "tick", "middle"))
    parts.append(text_at(_LEFT + inner / 2, _HEIGHT - 6, curve.unit, "axis", "middle"))
    for index, row in enumerate(values.tolist()):
        points = [place(step, value) for step, value in enumerate(row) if np.isfinite(value)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = f' stroke-dasharray="{10 - 2 * min(index, 3)} {3 * index}"' if index else ""
        parts.append(f'<polyline class="curve {tone(index)}" points="{path}"{dash}/>')
    return chart(f"NME under {curve.name} ({curve.unit}) of each network", _WIDTH, _HEIGHT, parts)
