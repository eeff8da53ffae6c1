"""Signals that stop a run after its step, and the rule for checkpoints within an epoch."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers of clusters and ``docker stop`` send before they kill."""


class CheckpointClock:
    """Says when a checkpoint is due: after a number of steps of an epoch, or of minutes."""

    def __init__(self, steps: int, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        """Start; 0 steps or minutes turn that rule off. `now` gives seconds."""
        self._steps, self._seconds, self._now = steps, 60 * minutes, now
        self._saved_at = now()

    def due(self, epoch_step: int) -> bool:
        """Whether to save after `epoch_step` steps of the epoch; if so, count from now."""
        by_steps = self._steps > 0 and epoch_step % self._steps == 0
        due = by_steps or (self._seconds > 0 and self._now() - self._saved_at >= self._seconds)
        if due:
            self.restart()
        return due

    def restart(self) -> None:
        """Count from now."""
        self._saved_at = self._now()


@dataclass(slots=True)
class Interruption:
    """The signal that asked the run to stop; 0 for none."""

    signal: int = 0


@contextmanager
def listening_for_signals() -> Iterator[Interruption]:
    """Record the first signal; a second one has its usual effect.

    Outside of the main thread, where Python receives no signals, nothing is recorded.
    """
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, _frame: FrameType | None) -> None:
        asked.signal = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        restore()
