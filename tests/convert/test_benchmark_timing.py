"""Intervals, verdicts and turns on timings whose truth is known."""

import gc
import os
import time
from itertools import count

import numpy as np
import pytest
from scipy import stats

from pfld_edge_convert.benchmark.timing import (
    Estimate,
    Judgement,
    SpeedVerdict,
    Times,
    block_spread,
    judge,
    median_of,
    ratio_of_medians,
    take_turns,
)
from pfld_edge_runtime.arrays import Float64Array


def timings(seed: int, ratio: float, noise: float = 0.05, rounds: int = 100) -> tuple[Float64Array, Float64Array]:
    """Times of two models whose medians have a ratio, on a machine whose speed drifts for both from round to round."""
    random = np.random.default_rng(seed)
    drift = np.zeros(rounds)
    for i in range(1, rounds):
        drift[i] = 0.8 * drift[i - 1] + random.normal(0, 0.05)
    first, second = np.exp(random.normal(0, noise, (2, rounds)))
    return 3 * ratio * np.exp(drift) * first, 3 * np.exp(drift) * second


def alone(wall: Float64Array) -> Times:
    """Times on a machine that does nothing else."""
    return Times(wall, wall)


def test_the_interval_of_a_ratio_holds_the_true_one_as_often_as_it_says() -> None:
    held = []
    for seed in range(150):
        found = ratio_of_medians(*timings(seed, 0.4), seed)
        held.append(found.low <= 0.4 <= found.high)
    # 95 % promised; the standard error of 150 trials is 1.8 %, and block bootstraps of 100 rounds fall a little short.
    assert 0.88 <= np.mean(held) <= 0.995


def test_what_slows_both_in_a_round_widens_nothing() -> None:
    times, reference = timings(3, 0.4)
    torn = np.random.default_rng(0).permutation(reference)
    assert ratio_of_medians(times, reference).half_width < 0.8 * ratio_of_medians(times, torn).half_width


def test_a_constant_ratio_has_no_width() -> None:
    _, reference = timings(0, 1)
    found = ratio_of_medians(0.5 * reference, reference)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_the_interval_of_a_median_is_scipys_where_rounds_are_independent() -> None:
    times = np.exp(np.random.default_rng(1).normal(0, 0.1, 400))
    found = median_of(times)
    expected = stats.bootstrap(
        (times,), np.median, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.value == np.median(times)
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.3 * width)


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_few_rounds_still_give_an_interval(rounds: int) -> None:
    found = median_of(np.linspace(1, 2, rounds))
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(0.8, SpeedVerdict.FASTER), (1.25, SpeedVerdict.SLOWER), (1.0, SpeedVerdict.SAME)], ids=str
)
def test_a_quiet_machine_can_tell(ratio: float, verdict: SpeedVerdict) -> None:
    times, reference = timings(0, ratio, noise=0.02)
    judged = judge(alone(times), alone(reference), ratio_of_medians(times, reference), 0.05)
    assert (judged.verdict, judged.reason) == (verdict, "")


def test_a_noisy_machine_cannot() -> None:
    times, reference = timings(0, 0.8, noise=0.6)
    judged = judge(alone(times), alone(reference), ratio_of_medians(times, reference), 0.05)
    assert judged.verdict is SpeedVerdict.TOO_NOISY
    assert "interval" in judged.reason


def test_a_neighbour_that_comes_for_a_while_is_noticed() -> None:
    times, reference = timings(0, 0.8, noise=0.01)
    times[60:] *= 1.5  # it disturbs one of the two alone
    quiet = Estimate(0.8, 0.79, 0.81)  # as if the interval had missed it
    judged = judge(alone(times), alone(reference), quiet, 0.05)
    assert judged.verdict is SpeedVerdict.TOO_NOISY
    assert "some rounds" in judged.reason
    assert judged.spread == pytest.approx(0.5, abs=0.1)


def test_a_model_alone_is_steady_or_too_noisy() -> None:
    random = np.random.default_rng(0)
    steady, wild = np.exp(random.normal(0, 0.02, 100)), np.exp(random.normal(0, 0.8, 100))
    assert judge(alone(steady), None, median_of(steady), 0.05).verdict is SpeedVerdict.STEADY
    assert judge(alone(wild), None, median_of(wild), 0.05).verdict is SpeedVerdict.TOO_NOISY


def compared(times: Times, reference: Times) -> Judgement:
    return judge(times, reference, ratio_of_medians(times.wall, reference.wall), 0.05)


def test_a_ratio_that_processor_time_contradicts_is_no_verdict() -> None:
    times, reference = timings(0, 0.29, noise=0.01)
    # Other processes interrupt the longer call only: the ratio of wall times is 0.09, steadily.
    judged = compared(alone(times), Times(reference * 0.29 / 0.09, reference))
    assert judged.verdict is SpeedVerdict.TOO_NOISY
    assert "0.09 by wall time, 0.29 by processor time" in judged.reason
    assert compared(Times(1.2 * times, times), alone(reference)).verdict is SpeedVerdict.TOO_NOISY
    assert compared(Times(1.03 * times, times), alone(reference)).verdict is SpeedVerdict.FASTER
    # What slows both alike leaves their ratio.
    assert compared(Times(3 * times, times), Times(3 * reference, reference)).verdict is SpeedVerdict.FASTER


def test_several_threads_may_share_the_work_unequally() -> None:
    times, reference = timings(0, 0.8, noise=0.01)
    # The reference keeps two threads busy all the time, the other file one and a half.
    assert compared(Times(times, 1.5 * times), Times(reference, 2 * reference)).verdict is SpeedVerdict.FASTER
    assert compared(Times(times, 0.7 * times), Times(reference, 2 * reference)).verdict is SpeedVerdict.TOO_NOISY


def test_a_model_alone_needs_the_processor_time_that_its_wall_time_says() -> None:
    wall, _ = timings(0, 1, noise=0.01)
    judged = judge(Times(wall, wall / 2), None, median_of(wall), 0.2)
    assert judged.verdict is SpeedVerdict.TOO_NOISY
    assert "2.00 times the processor time" in judged.reason
    assert judge(Times(wall, 2 * wall), None, median_of(wall), 0.2).verdict is SpeedVerdict.STEADY


def test_wall_time_decides_where_there_is_no_processor_time() -> None:
    times, reference = timings(0, 0.8, noise=0.02)
    assert compared(Times(times, None), Times(reference, None)).verdict is SpeedVerdict.FASTER
    found = take_turns({"a": list}, 3, processor_clock=None)["a"]
    assert (found.processor, found.processor_ms, found.processor_ratio(alone(times))) == (None, None, None)


@pytest.mark.skipif(os.name == "nt", reason="Windows' clock of processor time is too coarse for a call")
def test_sleep_takes_no_processor_time() -> None:
    found = take_turns({"sleep": lambda: time.sleep(0.02)}, 3, warm_up=0)["sleep"]
    assert found.processor_ms is not None
    assert found.processor_ms < 0.5 * found.milliseconds


def test_too_few_rounds_have_no_blocks() -> None:
    assert block_spread(np.array([1.0, 5.0, 9.0])) == 0


def test_every_round_runs_every_call_once_in_changing_order() -> None:
    ran: list[str] = []
    ticks, busy = count(), count()
    times = take_turns(
        {name: lambda name=name: ran.append(name) for name in "abc"},  # type: ignore[misc]
        40,
        warm_up=5,
        clock=lambda: next(ticks) / 1000,
        processor_clock=lambda: next(busy) / 500,
    )
    rounds = ["".join(ran[i : i + 3]) for i in range(0, len(ran), 3)]
    assert len(rounds) == 45
    assert {"".join(sorted(order)) for order in rounds} == {"abc"}
    assert len(set(rounds)) == 6
    # The clocks advance one and two milliseconds a look: start and end of each call.
    for name in "abc":
        np.testing.assert_allclose(times[name].wall, np.ones(40))
        np.testing.assert_allclose(times[name].processor, np.full(40, 2.0))  # type: ignore[arg-type]


def test_the_garbage_collector_rests_and_comes_back() -> None:
    seen: list[bool] = []

    def broken() -> None:
        seen.append(gc.isenabled())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        take_turns({"a": broken}, 1)
    assert seen == [False]
    assert gc.isenabled()
