"""What `evaluate` and `verify` print: tables of accuracy, drift, deviation and robustness, and the verdicts."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
from rich.table import Table

from pfld_edge.console import console, first_names, new_table
from pfld_edge_calib.evaluation.drift import DriftEstimate, Verdict
from pfld_edge_calib.evaluation.metrics import Deviation
from pfld_edge_calib.evaluation.robustness import Robustness
from pfld_edge_calib.evaluation.verification import ModelResult, Verification, shipping_verdict

_ACCURACY = "Accuracy (NME by outer eye corners, by pupils, by the diagonal of the landmarks' box)"

_WORDS = {Verdict.PASS: "yes", Verdict.FAIL: "NO", Verdict.INCONCLUSIVE: "inconclusive"}

_SHIPPING = {
    Verdict.PASS: "ship it",
    Verdict.FAIL: "within the budget, but don't ship it",
    Verdict.INCONCLUSIVE: "within the budget, but whether to ship it is inconclusive",
}

_NAMED = 10
"""Photographs that a line names at most."""

_SAME = 1e-4
"""Deviation, of the eye distance, below which a network's landmarks are the reference's and have no subsets to tell."""


def print_verification(found: Verification, *, stderr: bool = False) -> None:
    """Print what `verify` found: the tables, then what failed and why."""
    tables = (
        _accuracy_table(found, kinds=True),
        _subset_table(found),
        _by_region("Deviation", {m.name: m.deviation for m in found.models if m.deviation is not None and _moved(m)}),
        _drift_table(found),
    )
    for table in filter(None, tables):
        console(stderr=stderr).print(table)
    for line in _verdict_lines(found):
        click.echo(line, err=stderr)


def print_evaluation(found: Verification) -> None:
    """Print what `evaluate` found."""
    errors = _by_region("Error", {model.name: model.error for model in found.models if model.error is not None})
    for table in filter(None, (_accuracy_table(found), errors)):
        console().print(table)
    for line in _left_out_lines(found):
        click.echo(line)


def _accuracy_table(found: Verification, *, kinds: bool = False) -> Table:
    """Lay out each network's figures: of all faces, with its kind; or of each subset, with intervals where known."""
    missed = any(model.accuracy["all"].misses for model in found.models)
    intervals = not kinds and any(model.nme_intervals for model in found.models)
    figures = ("faces", *(("missed",) if missed else ()), "NME", *(("95 % interval",) if intervals else ()))
    rates = ("pupils", "diagonal", "FR@0.08", "FR@0.1", "AUC@0.1")
    table = new_table(_ACCURACY, "model", "kind" if kinds else "subset", figures=(*figures, *rates))
    for model in found.models:
        shown = {"all": model.accuracy["all"]} if kinds else model.accuracy
        for subset, accuracy in shown.items():
            ends = model.nme_intervals.get(subset)
            table.add_row(
                model.name if subset == "all" else "",
                model.kind if kinds else subset,
                f"{accuracy.faces}",
                *([f"{accuracy.misses}"] if missed else []),
                f"{accuracy.nme:.5f}",
                *(["" if ends is None else f"{ends[0]:.4f} ... {ends[1]:.4f}"] if intervals else []),
                "" if accuracy.nme_pupil is None else f"{accuracy.nme_pupil:.5f}",
                f"{accuracy.nme_diagonal:.5f}",
                f"{accuracy.failure_rate_08:.4f}",
                f"{accuracy.failure_rate_10:.4f}",
                f"{accuracy.auc_10:.4f}",
            )
        if not kinds:
            table.add_section()
    return table


def _drift_table(found: Verification) -> Table:
    """Lay out how each network compares with the first."""
    budget = found.settings.max_drift
    table = new_table(
        f"Drift from {found.models[0].name} on {found.measured} faces",
        "model",
        figures=("drift", "interval", "mean deviation", "largest", "at landmark"),
        caption="drift: change of the NME, with its 95 % interval; deviations as fractions of the eye distance",
    )
    table.add_column("on face")
    if budget is not None:
        table.add_column(f"drift <= {100 * budget:.3g}%")
    for model in found.models[1:]:
        if model.drift is None or model.deviation is None:
            continue
        moved = model.deviation
        table.add_row(
            model.name,
            _percent(model.drift["all"].value),
            _interval(model.drift["all"]),
            f"{moved.mean:.5f}",
            f"{moved.largest:.5f}",
            str(moved.largest_landmark),
            Path(found.faces[moved.largest_face]).name,
            *([] if budget is None else [_WORDS.get(model.verdict, "")]),
        )
    return table


def _subset_table(found: Verification) -> Table | None:
    """Lay out drift by subset, of networks whose landmarks are not the reference's; None where there is nothing."""
    table = new_table(
        "Drift by subset",
        "model",
        "subset",
        figures=("faces", "NME", "drift", "interval", "resolvable"),
        caption="resolvable: the smallest drift that so many faces show with a power of 80 %",
    )
    for model in found.models:
        if model.drift is None or not _moved(model):
            continue
        for subset, estimate in model.drift.items():
            nme = f"{model.accuracy[subset].nme:.5f}"
            resolvable = f"{estimate.resolvable:.2%}" if math.isfinite(estimate.resolvable) else "-"
            shown = (_percent(estimate.value), _interval(estimate), resolvable)
            table.add_row(model.name if subset == "all" else "", subset, f"{estimate.faces}", nme, *shown)
        table.add_section()
    return table if table.row_count else None


def _by_region(what: str, found: Mapping[str, Deviation]) -> Table | None:
    if not found:
        return None
    title = f"{what} by part of the face, fractions of the eye distance"
    table = new_table(title, "model", "part", figures=("mean", "95th percentile", "largest"))
    for model, distances in found.items():
        for row, (region, part) in enumerate(distances.by_region.items()):
            cells = (f"{value:.4f}" for value in (part.mean, part.p95, part.largest))
            table.add_row("" if row else model, region, *cells)
        table.add_section()
    return table


def _verdict_lines(found: Verification) -> Iterator[str]:
    """Say in sentences which faces count in no figure, what failed or is inconclusive, and what likely caused it."""
    yield from _left_out_lines(found)
    for model in found.models:
        if model.drift is not None and _moved(model) and model.drift["all"].method == "bca":
            drift = model.drift["all"]
            yield (
                f"{model.name}: {drift.faces} faces in {drift.photographs} photographs resolve a drift of "
                f"{drift.resolvable:.2%} or more"
            )
        if model.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
            yield f"{model.name}: {_WORDS[model.verdict]}, {model.reason}"
        elif model.verdict is Verdict.PASS:
            verdict, reason = shipping_verdict(found, model)
            yield f"{model.name}: {_SHIPPING[verdict]}, {reason}"
        for cause in model.likely_causes:
            yield f"{model.name}: likely cause: {cause.sentence}"


def _left_out_lines(found: Verification) -> Iterator[str]:
    """Count and name the faces that count in no figure; photographs that can't be read were named before."""
    if found.unreadable:
        yield f"{len(found.unreadable)} of {found.given} faces left out: their photographs can't be read"
    first, second = found.scheme.normalizing_points
    no_nme = f"they have no NME, for points {first} and {second} are unlabelled or coincide"
    for faces, why in ((found.outside, "they lie outside of their photographs"), (found.left_out, no_nme)):
        if faces:
            yield f"{len(faces)} of {found.given} faces left out: {why}: {first_names(faces, _NAMED)}"


def _moved(model: ModelResult) -> bool:
    return model.deviation is not None and not model.deviation.largest <= _SAME


def _interval(estimate: DriftEstimate) -> str:
    return f"{_percent(estimate.low)} ... {_percent(estimate.high)}"


def _percent(share: float) -> str:
    """With its sign, which zero has none of."""
    text = f"{share:+.2%}"
    return "0.00%" if text in ("+0.00%", "-0.00%") else text


def robustness_table(found: Robustness) -> Table:
    """Lay out the NME under each corruption, from mild to strong."""
    most = max(len(curve.strengths) for curve in found.curves)
    steps = ("mild" if step == 0 else "strong" if step == most - 1 else "" for step in range(most))
    title = f"NME under corruption, {found.faces} faces (none: not corrupted)"
    table = new_table(title, "corruption", "model", figures=("none", *steps))
    for curve in found.curves:
        table.add_row(f"{curve.name}, {curve.unit}", "", "", *(f"{value:g}" for value in curve.strengths), style="bold")
        for model, clean, row in zip(found.models, found.clean.tolist(), curve.nmes.tolist(), strict=True):
            table.add_row("", model, f"{clean:.4f}", *(f"{value:.4f}" for value in row))
        table.add_section()
    return table


def turned_table(found: Robustness) -> Table:
    """Lay out the NME of `measure_turned` at each angle, and the mean of all but upright over upright."""
    (curve,) = found.curves
    title = f"NME of {found.faces} faces turned in the image plane"
    table = new_table(title, curve.unit, figures=found.models)
    rows = zip((0.0, *curve.strengths), [found.clean, *curve.nmes.T], strict=True)
    for angle, nmes in rows:
        table.add_row(f"{angle:g}", *(f"{nme:.4f}" for nme in nmes))
    table.add_row("turned / upright", *(f"{ratio:.3f}" for ratio in curve.nmes.mean(axis=1) / found.clean))
    return table
