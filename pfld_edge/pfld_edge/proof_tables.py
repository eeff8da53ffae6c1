"""Tables and sentences of what `verify` and `evaluate` found."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.table import Table

from pfld_edge_calib.proof import Deviation, DriftEstimate, ModelProof, Verdict, Verification
from pfld_edge_calib.proof.figures import Figures

__all__ = [
    "accuracy_table",
    "drift_table",
    "error_table",
    "evaluation_table",
    "proof_lines",
    "region_table",
    "subset_table",
]

_WORDS = {
    Verdict.PASS: "yes",
    Verdict.FAIL: "NO",
    Verdict.UNDECIDED: "can't tell",
    Verdict.UNJUDGED: "",
    Verdict.REFERENCE: "",
}

_SAME = 1e-4
"""Deviation, of the eye distance, below which a network's landmarks are the reference's and have no subsets to tell."""


def accuracy_table(found: Verification) -> Table:
    """Lay out each network's figures, of all faces."""
    table = Table(title="Accuracy (NME by outer eye corners, by pupils, by the diagonal of the landmarks' box)")
    table.add_column("model")
    table.add_column("kind")
    missed = any(model.accuracy["all"].misses for model in found.models)
    _add_figures(table, missed=missed, intervals=False)
    for model in found.models:
        table.add_row(model.name, model.kind, *_cells(model.accuracy["all"], missed=missed))
    return table


def evaluation_table(found: Verification) -> Table:
    """Lay out each network's figures, of all faces and of each subset, with intervals where there are enough faces."""
    table = Table(title="Accuracy (NME by outer eye corners, by pupils, by the diagonal of the landmarks' box)")
    table.add_column("model")
    table.add_column("subset")
    missed = any(model.accuracy["all"].misses for model in found.models)
    intervals = any(model.nme_intervals for model in found.models)
    _add_figures(table, missed=missed, intervals=intervals)
    for model in found.models:
        for subset, figures in model.accuracy.items():
            cells = _cells(figures, missed=missed)
            if intervals:
                ends = model.nme_intervals.get(subset)
                cells.insert(2 + missed, "" if ends is None else f"{ends[0]:.4f} ... {ends[1]:.4f}")
            table.add_row(model.name if subset == "all" else "", subset, *cells)
        table.add_section()
    return table


def _add_figures(table: Table, *, missed: bool, intervals: bool) -> None:
    for name in ("faces", "missed", "NME", "95 % interval", "pupils", "diagonal", "FR@0.08", "FR@0.1", "AUC@0.1"):
        if (missed or name != "missed") and (intervals or name != "95 % interval"):
            table.add_column(name, justify="right")


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
    moved = {model.name: model.deviation for model in found.models if model.deviation is not None and _moved(model)}
    return _by_region("Deviation", moved)


def error_table(found: Verification) -> Table | None:
    """Lay out the error by part of the face, where there is no reference."""
    return _by_region("Error", {model.name: model.error for model in found.models if model.error is not None})


def _by_region(what: str, found: Mapping[str, Deviation]) -> Table | None:
    if not found:
        return None
    table = Table(title=f"{what} by part of the face, fractions of the eye distance")
    table.add_column("model")
    table.add_column("part")
    for name in ("mean", "95th percentile", "largest"):
        table.add_column(name, justify="right")
    for model, distances in found.items():
        for row, (region, part) in enumerate(distances.by_region.items()):
            cells = (f"{value:.4f}" for value in (part.mean, part.p95, part.largest))
            table.add_row("" if row else model, region, *cells)
        table.add_section()
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
