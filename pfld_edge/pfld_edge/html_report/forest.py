"""Drift by subset, with intervals."""

from html import escape

from pfld_edge.html_report.alike import parted, same_sentence
from pfld_edge.html_report.markup import chart, percent, text_at
from pfld_edge_calib.proof import DriftEstimate, ModelProof, Verification

__all__ = ["drift_charts"]

_WIDTH, _ROW, _TOP, _BOTTOM, _LEFT, _RIGHT = 680.0, 30.0, 10.0, 34.0, 165.0, 225.0
_LEAST_RANGE = 0.002


def drift_charts(found: Verification) -> str:
    """One chart for each network that finds other landmarks than the first."""
    same, others = parted(found)
    charts = "".join(
        f"<figure>{_chart(model, found.settings.max_drift)}<figcaption>{_caption(model)}</figcaption></figure>"
        for model in others
    )
    return same_sentence(found, same) + charts


def _caption(model: ModelProof) -> str:
    drift = model.drift
    words = escape(model.name)
    if drift is not None:
        words += f": with these faces a drift below {abs(drift.all.resolvable):.2%} can hardly be told from none"
    return words


def _chart(model: ModelProof, budget: float | None) -> str:
    assert model.drift is not None  # noqa: S101 - tells the type checker
    rows: dict[str, DriftEstimate] = {"all": model.drift.all, **model.drift.by_subset}
    ends = [abs(end) for row in rows.values() for end in (row.low, row.high) if abs(end) < float("inf")]
    most = max([_LEAST_RANGE, *([] if budget is None else [budget]), *(end for end in ends if end == end)]) * 1.05
    height = _TOP + _ROW * len(rows) + _BOTTOM
    inner = _WIDTH - _LEFT - _RIGHT

    def at(value: float) -> float:
        return _LEFT + inner * (max(-most, min(most, value)) / most + 1) / 2

    parts = []
    if budget is not None:
        parts.append(
            f'<rect class="budget" x="{_LEFT}" width="{at(budget) - _LEFT:.1f}" y="{_TOP}" '
            f'height="{_ROW * len(rows)}"/>'
        )
    for value in (-most / 1.05, 0.0, most / 1.05):
        x = at(value)
        kind = "zero" if value == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
        parts.append(text_at(x, height - _BOTTOM + 18, percent(value), "tick", "middle"))
    for place, (name, drift) in enumerate(rows.items()):
        y = _TOP + _ROW * (place + 0.5)
        parts.append(text_at(_LEFT - 10, y + 4, f"{name} ({drift.faces})", "label", "end"))
        words = f"{percent(drift.value)} [{percent(drift.low)}, {percent(drift.high)}]"
        parts.append(text_at(_WIDTH - _RIGHT + 10, y + 4, words, "tick"))
        if drift.value != drift.value:
            continue
        low, high, x = at(drift.low), at(drift.high), at(drift.value)
        parts.append(f'<line class="interval" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<circle class="estimate" cx="{x:.1f}" cy="{y:.1f}" r="{6 if place == 0 else 4.5}"/>')
    return chart(f"Drift of {model.name} by subset, with 95 % intervals", _WIDTH, height, parts)
