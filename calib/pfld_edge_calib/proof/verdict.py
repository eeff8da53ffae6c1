"""Whether a drift is within its budget, beyond it, or can't be told."""

import math

from pfld_edge_calib.proof.interval import DriftEstimate
from pfld_edge_calib.proof.result import Verdict

__all__ = ["faces_needed", "judge"]


def judge(drift: DriftEstimate, budget: float | None) -> tuple[Verdict, str]:
    """Compare a drift's interval with the budget.

    Returns:
        The verdict and a sentence, empty where there is no budget.
    """
    if budget is None:
        return Verdict.UNJUDGED, ""
    allowed = f"{100 * budget:.3g}%"
    interval = f"{drift.value:+.3%} [{drift.low:+.3%}, {drift.high:+.3%}]"
    if drift.high <= budget:
        return Verdict.PASS, f"drift {interval} is within {allowed}"
    if drift.low > budget:
        return Verdict.FAIL, f"drift {interval} exceeds {allowed}"
    if not math.isfinite(drift.value):
        return Verdict.FAIL, "the drift is not a number: a network gave NaN, or found no face"
    return (
        Verdict.UNDECIDED,
        f"drift {interval}: {drift.faces} faces can't tell whether it is within {allowed}; " + (_advice(drift, budget)),
    )


def _advice(drift: DriftEstimate, budget: float) -> str:
    if drift.method != "bca":
        return (
            f"they come from {drift.photographs} photographs, too few for an interval: give --data with hundreds of "
            "labelled faces"
        )
    needed = faces_needed(drift, budget)
    if needed is None:
        return "the drift is the budget itself, and no number of faces would tell"
    return f"about {needed:,} such faces would"


def faces_needed(drift: DriftEstimate, budget: float) -> int | None:
    """About how many faces would decide, if the drift stays what it is and the interval shrinks as 1 / sqrt(faces).

    Returns:
        Two leading digits, rounded up; None where the drift is the budget.
    """
    away = drift.value - budget
    reach = drift.value - drift.low if away > 0 else drift.high - drift.value
    if away == 0:
        return None
    exact = float(drift.faces * (reach / away) ** 2)
    step = int(10 ** max(0, math.floor(math.log10(max(exact, 1))) - 1))
    return max(drift.faces + 1, math.ceil(exact / step) * step)
