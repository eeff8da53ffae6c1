"""Tables and sentences of what `verify` and `evaluate` found."""

import math
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from pfld_edge_calib.proof import DriftEstimate, ModelProof, Verdict, Verification
from pfld_edge_calib.proof.figures import Figures

__all__ = ["accuracy_table", "drift_table", "proof_lines", "region_table", "subset_table"]

_WORDS = {
    Verdict.PASS: "yes",
    Verdict.FAIL: "NO",
    Verdict.UNDECIDED: "can't tell",
    Verdict.UNJUDGED: "",
    Verdict.REFERENCE: "",
}

_SAME = 1e-4
"""Deviation, of the eye distance, below which a network's landmarks are the reference's and have no subsets to tell."""


def accuracy_table(found: Verification, *, subsets: bool) -> Table:
    """Lay out each network's figures, of all faces or also of each subset."""
    table = Table(title="Accuracy (NME by outer eye corners, by pupils, by the diagonal of the landmarks' box)")
    for name in ("model", "kind", "subset"):
        table.add_column(name)
    missed = any(figures.misses for model in found.models for figures in model.accuracy.values())
    columns = ("faces", "missed", "NME", "pupils", "diagonal", "FR@0.08", "FR@0.1", "AUC@0.1")
    for name in columns:
        if missed or name != "missed":
            table.add_column(name, justify="right")
    for model in found.models:
        for subset, figures in model.accuracy.items():
            if subset == "all" or subsets:
                first = (model.name, model.kind) if subset == "all" else ("", "")
                table.add_row(*first, subset, *_cells(figures, missed=missed))
        if subsets:
            table.add_section()
    return table


def _cells(figures: Figures, *, missed: bool) -> list[str]:
    pupils = "" if figures.nme_pupil is None else f"{figures.nme_pupil:.5f}"
    rates = (f"{figures.failure_rate_08:.4f}", f"{figures.failure_rate_10:.4f}", f"{figures.auc_10:.4f}")
    misses = [f"{figures.misses}"] if missed else []
    return [f"{figures.faces}", *misses, f"{figures.nme:.5f}", pupils, f"{figures.nme_diagonal:.5f}", *rates]


def drift_table(found: Verification) -> Table:
    """Lay out how each network compares with the first."""
    budget = found.settings.max_drift
    table = Table(
        title=f"Drift from {found.models[0].name} on {len(found.faces)} faces",
        caption="drift: change of the NME, with its 95 % interval; deviations as fractions of the eye distance",
    )
    table.add_column("model")
    for name in ("drift", "interval", "mean deviation", "largest", "at landmark"):
        table.add_column(name, justify="right")
    table.add_column("on face")
    if budget is not None:
        table.add_column(f"drift <= {100 * budget:.3g}%")
    for model in found.models[1:]:
        if model.drift is None or model.deviation is None:
            continue
        moved = model.deviation
        table.add_row(
            model.name,
            _percent(model.drift.all.value),
            _interval(model.drift.all),
            f"{moved.mean:.5f}",
            f"{moved.largest:.5f}",
            str(moved.largest_landmark),
            Path(found.faces[moved.largest_face]).name,
            *([] if budget is None else [_WORDS[model.verdict]]),
        )
    return table


def subset_table(found: Verification) -> Table | None:
    """Lay out drift by subset, of networks whose landmarks are not the reference's; None where there is nothing."""
    table = Table(
        title="Drift by subset",
        caption="resolvable: the smallest drift that so many faces show four times in five",
    )
    table.add_column("model")
    table.add_column("subset")
    for name in ("faces", "NME", "drift", "interval", "resolvable"):
        table.add_column(name, justify="right")
    for model in found.models:
        if model.drift is None or not _moved(model):
            continue
        estimates = {"all": model.drift.all, **model.drift.by_subset}
        for subset, estimate in estimates.items():
            nme = f"{model.accuracy[subset].nme:.5f}"
            shown = (_percent(estimate.value), _interval(estimate), _resolvable(estimate))
            table.add_row(model.name if subset == "all" else "", subset, f"{estimate.faces}", nme, *shown)
        table.add_section()
    return table if table.row_count else None


def region_table(found: Verification) -> Table | None:
    """Lay out deviation by part of the face, of networks whose landmarks are not the reference's."""
    moved = [model for model in found.models if model.deviation is not None and _moved(model)]
    if not moved:
        return None
    table = Table(
        title="Deviation by part of the face: mean / 95th percentile / largest, fractions of the eye distance"
    )
    table.add_column("model")
    for region in moved[0].deviation.by_region if moved[0].deviation else ():
        table.add_column(region, justify="right")
    for model in moved:
        parts = {} if model.deviation is None else model.deviation.by_region
        table.add_row(
            model.name, *(f"{part.mean:.4f} / {part.p95:.4f} / {part.largest:.3f}" for part in parts.values())
        )
    return table


def proof_lines(found: Verification) -> Iterator[str]:
    """Say in sentences what failed, what can't be told, and what likely caused it."""
    for model in found.models:
        if model.drift is not None and _moved(model) and model.drift.all.method == "bca":
            drift = model.drift.all
            yield (
                f"{model.name}: {drift.faces} faces in {drift.photographs} photographs resolve a drift of "
                f"{drift.resolvable:.2%} or more"
            )
        if model.verdict in (Verdict.FAIL, Verdict.UNDECIDED):
            yield f"{model.name}: {_WORDS[model.verdict]}, {model.reason}"
        for suspicion in model.suspicions:
            yield f"{model.name}: likely cause: {suspicion.sentence}"


def _moved(model: ModelProof) -> bool:
    return model.deviation is not None and not model.deviation.largest <= _SAME


def _resolvable(estimate: DriftEstimate) -> str:
    return f"{estimate.resolvable:.2%}" if math.isfinite(estimate.resolvable) else "-"


def _interval(estimate: DriftEstimate) -> str:
    return f"{_percent(estimate.low)} ... {_percent(estimate.high)}"


def _percent(share: float) -> str:
    """With its sign, which zero has none of."""
    text = f"{share:+.2%}"
    return "0.00%" if text in ("+0.00%", "-0.00%") else text
