"""Where on the face landmarks moved: the mean shape, a dot a landmark."""

from html import escape

import numpy as np
from numpy.typing import NDArray

from pfld_edge.drawing import regions
from pfld_edge.html_report.alike import parted, same_sentence
from pfld_edge.html_report.markup import chart, number, table, text_at
from pfld_edge_calib.proof import Deviation, ModelProof, Verification

__all__ = ["heat_faces", "region_rows"]

_SIZE, _EDGE = 320.0, 22.0
_STEPS = 5
"""Shades of the scale; the style sheet has their colours."""

_OPEN = ("contour", "nose")


def heat_faces(found: Verification) -> str:
    """One face for each network that is compared, on one scale."""
    same, others = parted(found)
    compared = [(model, model.deviation) for model in others if model.deviation is not None]
    values = [deviation.by_landmark for _, deviation in compared]
    if not values or not np.isfinite(most := max(float(each.max()) for each in values)) or most == 0:
        return same_sentence(found, same)
    faces = "".join(_face(found, model, deviation, most) for model, deviation in compared)
    scale = "".join(
        f'<span class="heat{i}">{most * i / _STEPS:.4f} to {most * (i + 1) / _STEPS:.4f}</span>' for i in range(_STEPS)
    )
    key = f'<p class="scale" aria-label="colour scale">{scale}</p>'
    return f'{same_sentence(found, same)}<div class="faces">{faces}</div>{key}'


def region_rows(found: Verification) -> str:
    """Deviation of brows, eyes, nose, mouth and contour as a table."""
    rows = [
        [
            escape(model.name),
            escape(region),
            number(part.mean, 5),
            number(part.p95, 5),
            number(part.largest, 4),
        ]
        for model in parted(found)[1]
        if model.deviation is not None
        for region, part in model.deviation.by_region.items()
    ]
    head = ("network", "part of the face", "mean", "95th percentile", "largest")
    return table("Deviation from the reference by part of the face, in eye distances", head, rows) if rows else ""


def _face(found: Verification, model: ModelProof, deviation: Deviation, most: float) -> str:
    places = _mean_shape(found.truth)
    parts = []
    for name, indices in regions(found.scheme).items():
        closed = not any(word in name for word in _OPEN)
        line = [places[i] for i in indices] + ([places[indices[0]]] if closed and len(indices) > 2 else [])
        if len(line) > 1:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
            parts.append(f'<polyline class="outline" points="{points}"/>')
    for index, (x, y) in enumerate(places):
        value = float(deviation.by_landmark[index])
        shade = min(_STEPS - 1, int(_STEPS * value / most))
        radius = 2.5 + 4.5 * value / most
        words = escape(f"{index} {found.scheme.names[index]}: mean {value:.5f}")
        parts.append(
            f'<circle class="heat{shade}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{words}</title></circle>'
        )
    worst = int(np.nan_to_num(deviation.by_landmark).argmax())
    parts.append(text_at(_SIZE / 2, _SIZE - 4, f"most: {found.scheme.names[worst]}", "tick", "middle"))
    title = f"Mean deviation of each landmark of {model.name}, largest at {found.scheme.names[worst]}"
    return f"<figure>{chart(title, _SIZE, _SIZE, parts)}<figcaption>{escape(model.name)}</figcaption></figure>"


def _mean_shape(truth: NDArray[np.float32]) -> list[tuple[float, float]]:
    """The mean of all faces, each moved and scaled to one box, fitted into the picture."""
    low, high = truth.min(axis=1, keepdims=True), truth.max(axis=1, keepdims=True)
    shape = ((truth - low) / (high - low).max(axis=2, keepdims=True)).mean(axis=0).astype(np.float64)
    shape -= shape.min(axis=0)
    inner = _SIZE - 2 * _EDGE
    placed = shape / shape.max() * inner
    placed += (_SIZE - placed.max(axis=0)) / 2
    return [(float(x), float(y)) for x, y in placed]
