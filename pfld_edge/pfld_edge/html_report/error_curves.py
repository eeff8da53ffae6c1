"""Cumulative error curves: the share of faces below each error."""

import numpy as np

from pfld_edge.html_report.markup import chart, legend, text_at, tone
from pfld_edge_calib.proof import Verification

__all__ = ["error_curves"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640.0, 360.0, 46.0, 42.0, 12.0, 16.0
_MOST = 0.15
"""Errors beyond are failures by any measure."""


def error_curves(found: Verification) -> str:
    """Draw all networks' curves over each other."""
    inner, rise = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM - _TOP

    def place(error: float, share: float) -> tuple[float, float]:
        return _LEFT + inner * error / _MOST, _TOP + rise * (1 - share)

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = place(0, tick)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text_at(_LEFT - 6, y + 4, f"{tick:.0%}", "tick", "end"))
    for step in range(4):
        error = 0.05 * step
        x = place(error, 0)[0]
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(text_at(x, _HEIGHT - _BOTTOM + 18, f"{error:.2f}", "tick", "middle"))
    parts.append(text_at(_LEFT + inner / 2, _HEIGHT - 6, "error of a face (NME)", "axis", "middle"))
    for index, model in enumerate(found.models):
        errors = np.sort(np.where(np.isnan(model.errors.ocular), np.inf, model.errors.ocular))
        path = [place(0, 0)]
        for rank, error in enumerate(errors.tolist(), 1):
            if error > _MOST:
                break
            path += [place(error, (rank - 1) / len(errors)), place(error, rank / len(errors))]
        path.append(place(_MOST, float((errors <= _MOST).mean())))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
        # Curves that lie on each other: later ones are dashed, so that the first shows through.
        dash = f' stroke-dasharray="{12 - 2 * min(index, 4)} {3 * index}"' if index else ""
        parts.append(f'<polyline class="curve {tone(index)}" points="{points}"{dash}/>')
    title = "Cumulative error curves: the share of faces whose error is at most so large, for each network"
    return chart(title, _WIDTH, _HEIGHT, parts) + legend([model.name for model in found.models])
