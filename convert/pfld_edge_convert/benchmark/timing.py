"""Timing: interleaved calls, bootstrap intervals of medians and their ratios, and what they allow to conclude."""

import gc
import os
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import numpy as np

from pfld_edge_runtime.arrays import Float64Array

Key = TypeVar("Key", bound=Hashable)

_RESAMPLES = 2000
_CONFIDENCE = 0.95

_BLOCKS = 5
_SPREAD_ALLOWED = 4.0
"""Spread of blocks that is allowed, in half widths. Five medians of a fifth of the rounds each scatter over some 5
standard errors of the whole where nothing but chance is at work, and the interval's half width is 2 of them."""

_PROCESSOR_CLOCK = None if os.name == "nt" else time.process_time
"""Seconds of all threads of this process; the one of Windows advances by 15.6 ms, too coarse for a call."""


@dataclass(frozen=True, slots=True)
class Times:
    """What calls took, ``(rounds,)`` milliseconds: on the wall, and of all threads (None where not measurable)."""

    wall: Float64Array
    processor: Float64Array | None

    @property
    def milliseconds(self) -> float:
        """Median wall time."""
        return float(np.median(self.wall))

    @property
    def processor_ms(self) -> float | None:
        """Median processor time."""
        return None if self.processor is None else float(np.median(self.processor))

    def processor_ratio(self, reference: "Times") -> float | None:
        """How many times as much processor time it takes as a reference."""
        mine, other = self.processor_ms, reference.processor_ms
        return None if mine is None or other is None else mine / other


def take_turns(
    calls: Mapping[Key, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 20,
    clock: Callable[[], float] = time.perf_counter,
    processor_clock: Callable[[], float] | None = _PROCESSOR_CLOCK,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[Key, Times]:
    """Time calls, each once a round, in an order that is shuffled anew for every round.

    A call finds the caches as another left them, as in an app that does other things too; shuffling keeps any of them
    from always running behind the same neighbour. The garbage collector rests meanwhile. Entry i of all results is of
    round i after the warm-up; `advance` is told 1 after each round. With ``time.thread_time`` as its clock, what other
    processes take of a single thread is left out.
    """
    wall, processor = np.zeros((2, len(calls), warm_up + rounds))
    entries, random = list(calls.values()), np.random.default_rng(seed)
    was_on = gc.isenabled()
    gc.disable()
    try:
        for round_ in range(warm_up + rounds):
            for place in random.permutation(len(entries)):
                call = entries[place]
                busy = processor_clock() if processor_clock else 0.0
                start = clock()
                call()
                wall[place, round_] = 1000 * (clock() - start)
                processor[place, round_] = 1000 * (processor_clock() - busy) if processor_clock else 0.0
            advance(1)
    finally:
        if was_on:
            gc.enable()
    kept = slice(warm_up, None)
    return {
        name: Times(wall[place, kept], processor[place, kept] if processor_clock else None)
        for place, name in enumerate(calls)
    }


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval, as a share of the value."""
        return (self.high - self.low) / 2 / self.value if self.value else 0.0


def median_of(times: Float64Array, seed: int = 0) -> Estimate:
    """Estimate the median of ``(rounds,)`` times, at least one."""
    return ratio_of_medians(times, np.ones_like(times), seed)


def ratio_of_medians(times: Float64Array, reference: Float64Array, seed: int = 0) -> Estimate:
    """Estimate how many times as long something takes as a reference, from ``(rounds,)`` times of the same rounds.

    Both are resampled by the same rounds, so that what slowed a round for both widens nothing; and by whole stretches
    (of the cube root of their number), for what slows one round mostly slows the next too (Künsch, "The jackknife and
    the bootstrap for general stationary observations", Annals of Statistics 17, 1989; here on a circle, after Politis
    and Romano, 1992).
    """
    count = len(times)
    stretch = max(1, round(count ** (1 / 3)))
    starts = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, -(-count // stretch)))
    rows = (starts[:, :, None] + np.arange(stretch)).reshape(_RESAMPLES, -1)[:, :count] % count
    ratios = np.median(times[rows], axis=1) / np.median(reference[rows], axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Estimate(float(np.median(times) / np.median(reference)), float(low), float(high))


class SpeedVerdict(str, Enum):
    """What can be said of a model's time."""

    REFERENCE = "reference"
    STEADY = "steady"
    FASTER = "faster"
    SLOWER = "slower"
    SAME = "no difference"
    TOO_NOISY = "too noisy to tell"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, how far blocks of rounds lie apart (`block_spread`), and why nothing can be said, else empty."""

    verdict: SpeedVerdict
    spread: float
    reason: str = ""


def judge(times: Times, reference: Times | None, found: Estimate, precision: float) -> Judgement:
    """Say what timings show, against a reference of the same rounds or alone.

    `found` is the ratio of median wall times with its interval, or without a reference the median with its own. The
    precision is the widest half interval that still counts as an answer, e.g. 0.05; wall and processor time may
    disagree as much, and blocks of rounds may lie four times as far apart.
    """
    spread = block_spread(times.wall, None if reference is None else reference.wall)
    what, reason = "median" if reference is None else "ratio", _disagreement(times, reference, precision)
    if not reason and not found.half_width <= precision:
        reason = f"the {what}'s interval is {found.half_width:.1%} to either side, {precision:.1%} is asked for"
    elif not reason and not spread <= _SPREAD_ALLOWED * precision:
        reason = f"the {what} of some rounds lies {spread:.0%} from that of others"
    if reason:
        return Judgement(SpeedVerdict.TOO_NOISY, spread, reason)
    if reference is None:
        return Judgement(SpeedVerdict.STEADY, spread)
    faster, slower = found.high < 1, found.low > 1
    return Judgement(SpeedVerdict.FASTER if faster else SpeedVerdict.SLOWER if slower else SpeedVerdict.SAME, spread)


def _disagreement(times: Times, reference: Times | None, precision: float) -> str:
    """Why wall and processor time disagree; empty where they don't, or where there is no processor time."""
    slowdown = _slowdown(times) / (1.0 if reference is None else _slowdown(reference))
    if max(slowdown, 1 / slowdown) <= 1 + precision:
        return ""
    if reference is None:
        return f"wall time is {slowdown:.2f} times the processor time; other processes held the processor"
    ratios = times.milliseconds / reference.milliseconds, times.processor_ratio(reference)
    return f"the ratio is {ratios[0]:.2f} by wall time, {ratios[1]:.2f} by processor time; the machine is busy"


def _slowdown(times: Times) -> float:
    """Wall time over processor time, at least 1.

    Threads that run at the same time have more processor time than wall time; how much more depends on the network.
    """
    processor = times.processor_ms
    return 1.0 if processor is None else max(1.0, times.milliseconds / processor)


def block_spread(times: Float64Array, reference: Float64Array | None = None) -> float:
    """Range of the medians, or of their ratios, of five blocks of rounds in order, as a share of the middle one.

    0 where there are fewer than 10 rounds.
    """
    if len(times) < 2 * _BLOCKS:
        return 0.0
    figures = np.array([np.median(block) for block in np.array_split(times, _BLOCKS)])
    if reference is not None:
        figures /= [np.median(block) for block in np.array_split(reference, _BLOCKS)]
    return float(np.ptp(figures) / np.median(figures))
