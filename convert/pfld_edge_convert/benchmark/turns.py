"""The timing loop: what is compared takes turns, so that what slows the machine slows all of it."""

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["take_turns"]

Key = TypeVar("Key", bound=Hashable)


def take_turns(
    calls: Mapping[Key, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 20,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[Key, NDArray[np.float64]]:
    """Time calls, each once a round, in an order that is shuffled anew for every round.

    A call finds the caches as another left them, as in an app that does other things too; shuffling keeps any of them
    from always running behind the same neighbour. The garbage collector rests meanwhile.

    Args:
        calls: What is timed, by name.
        rounds: Timed rounds.
        warm_up: Rounds before them that aren't kept.
        clock: Seconds; ``time.thread_time`` leaves out what other processes take of a single thread.
        seed: Of the orders.
        advance: Told 1 after each round, for a progress bar.

    Returns:
        ``(rounds,)`` milliseconds of each call; entry i of all of them is of round i.
    """
    times = {name: np.zeros(rounds) for name in calls}
    order, random = list(calls), np.random.default_rng(seed)
    with _no_collection():
        for round_ in range(-warm_up, rounds):
            for place in random.permutation(len(order)):
                name = order[place]
                call = calls[name]
                start = clock()
                call()
                taken = clock() - start
                if round_ >= 0:
                    times[name][round_] = 1000 * taken
            advance(1)
    return times


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
