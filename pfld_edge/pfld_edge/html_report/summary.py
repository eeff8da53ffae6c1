"""The verdict, and the table behind it."""

from html import escape

from pfld_edge.html_report.markup import DASH, number, percent, table
from pfld_edge_calib.proof import ModelProof, Verdict, Verification

__all__ = ["banner", "model_table", "suspicion_list"]

_MARKS = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.UNDECIDED: "?", Verdict.UNJUDGED: "i", Verdict.REFERENCE: "i"}


def banner(found: Verification) -> str:
    """One sentence that says whether the files may ship."""
    verdict = found.verdict
    return (
        f'<div class="banner {verdict.value}" role="status">'
        f'<span class="mark" aria-hidden="true">{_MARKS[verdict]}</span>'
        f"<p>{escape(_sentence(found))}</p></div>"
    )


def _sentence(found: Verification) -> str:
    judged = [model for model in found.models if model.verdict in (Verdict.PASS, Verdict.FAIL, Verdict.UNDECIDED)]
    reference = found.models[0].name
    budget = found.settings.max_drift
    if not judged or budget is None:
        compared = [model for model in found.models if model.drift is not None]
        if not compared:
            return f"{reference}: NME {number(found.models[0].accuracy['all'].nme)} on {len(found.faces)} faces."
        worst = max(compared, key=lambda model: model.drift.all.value if model.drift is not None else 0)
        drift = worst.drift.all if worst.drift is not None else None
        value = percent(drift.value) if drift is not None else ""
        return f"No budget was given. The largest drift from {reference} is {value}, of {worst.name}."
    named = {
        verdict: ", ".join(model.name for model in judged if model.verdict is verdict)
        for verdict in (Verdict.FAIL, Verdict.UNDECIDED, Verdict.PASS)
    }
    words = []
    if named[Verdict.FAIL]:
        words.append(f"Don't ship: {named[Verdict.FAIL]} loses more than the budget of {budget:.2%}.")
    if named[Verdict.UNDECIDED]:
        words.append(
            f"Can't tell: these faces are too few to say whether {named[Verdict.UNDECIDED]} stays within {budget:.2%}."
        )
    if named[Verdict.PASS]:
        start = "Within the budget" if words else "Ship it"
        passed = [model for model in judged if model.verdict is Verdict.PASS]
        verb = "stay" if len(passed) > 1 else "stays"
        words.append(f"{start}: {named[Verdict.PASS]} {verb} within {budget:.2%} of {reference}.")
    return " ".join(words)


def model_table(found: Verification) -> str:
    """A line a network."""
    rows = [_row(model) for model in found.models]
    head = ("network", "verdict", "NME", "drift [95 % interval]", "FR@0.08", "FR@0.1", "AUC@0.1", "largest move")
    return table("NME by the outer eye corners; largest move of a landmark in eye distances", head, rows)


def _row(model: ModelProof) -> list[str]:
    figures = model.accuracy["all"]
    drift = "reference" if model.verdict is Verdict.REFERENCE else DASH
    if model.drift is not None:
        estimate = model.drift.all
        drift = f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"
    verdict = f'<span class="pill {model.verdict.value}">{_MARKS[model.verdict]} {model.verdict.value}</span>'
    missed = f" ({figures.misses} missed)" if figures.misses else ""
    return [
        f"{escape(model.name)}<br/><small>{escape(model.kind)}</small>",
        verdict,
        number(figures.nme, 5) + missed,
        drift,
        f"{figures.failure_rate_08:.1%}",
        f"{figures.failure_rate_10:.1%}",
        number(figures.auc_10),
        number(model.deviation.largest) if model.deviation is not None else DASH,
    ]


def suspicion_list(found: Verification) -> str:
    """What likely went wrong, where something did; and the reasons behind verdicts."""
    items = [
        f"<li><strong>{escape(model.name)}</strong>: {escape(suspicion.sentence)}</li>"
        for model in found.models
        for suspicion in model.suspicions
    ]
    reasons = [
        f"<li><strong>{escape(model.name)}</strong>: {escape(model.reason)}</li>"
        for model in found.models
        if model.reason
    ]
    causes = f'<h3>Likely causes</h3><ul class="causes">{"".join(items)}</ul>' if items else ""
    return causes + (f"<ul>{''.join(reasons)}</ul>" if reasons else "")
