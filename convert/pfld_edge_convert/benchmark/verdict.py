"""What timings allow to say, and whether the machine was too noisy to say anything."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from pfld_edge_convert.benchmark.intervals import Estimate

__all__ = ["Judgement", "Verdict", "block_spread", "judge"]

Float = NDArray[np.float64]

_BLOCKS = 5
_SPREAD_ALLOWED = 4.0
"""Spread of blocks that is allowed, in half widths. Five medians of a fifth of the rounds each scatter over some 5
standard errors of the whole where nothing but chance is at work, and the interval's half width is 2 of them."""


class Verdict(str, Enum):
    """What can be said of a model's time."""

    REFERENCE = "reference"
    STEADY = "steady"
    FASTER = "faster"
    SLOWER = "slower"
    SAME = "no difference"
    TOO_NOISY = "too noisy to tell"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and its reason.

    Attributes:
        verdict: What can be said.
        spread: How far blocks of rounds lie apart, see `block_spread`.
        reason: Why nothing can be said; empty otherwise.
    """

    verdict: Verdict
    spread: float
    reason: str = ""


def judge(times: Float, reference: Float | None, found: Estimate, precision: float) -> Judgement:
    """Say what timings show.

    Args:
        times: ``(rounds,)`` milliseconds.
        reference: ``(rounds,)`` of the same rounds; None judges the times alone.
        found: The ratio of medians with its interval, or without a reference the median with its own.
        precision: Widest half interval that still counts as an answer, e.g. 0.05; blocks of rounds may lie four
            times as far apart.
    """
    spread = block_spread(times, reference)
    what = "median" if reference is None else "ratio"
    if not found.half_width <= precision:
        reason = f"the {what}'s interval is {found.half_width:.1%} to either side, {precision:.1%} is asked for"
    elif not spread <= _SPREAD_ALLOWED * precision:
        reason = f"the {what} of some rounds lies {spread:.0%} from that of others"
    else:
        return Judgement(_plain(found) if reference is not None else Verdict.STEADY, spread)
    return Judgement(Verdict.TOO_NOISY, spread, reason)


def block_spread(times: Float, reference: Float | None = None) -> float:
    """Cut the rounds into five blocks in order and see how far the blocks' medians, or their ratios, lie apart.

    Returns:
        Largest less smallest, as a share of the middle one; 0 where there are fewer than 10 rounds.
    """
    if len(times) < 2 * _BLOCKS:
        return 0.0
    figures = np.array([np.median(block) for block in np.array_split(times, _BLOCKS)])
    if reference is not None:
        figures /= [np.median(block) for block in np.array_split(reference, _BLOCKS)]
    return float(np.ptp(figures) / np.median(figures))


def _plain(ratio: Estimate) -> Verdict:
    if ratio.high < 1:
        return Verdict.FASTER
    return Verdict.SLOWER if ratio.low > 1 else Verdict.SAME
