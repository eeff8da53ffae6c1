"""Signals that ask a run to stop after its step, and the clock that says when to save within an epoch."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["CheckpointClock", "Interruption", "listening_for_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers of clusters and ``docker stop`` send before they kill."""


class CheckpointClock:
    """Says when a checkpoint is due: after so many steps of an epoch, or so many minutes."""

    def __init__(self, steps: int, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        """Start the clock.

        Args:
            steps: Between two checkpoints; 0 for no such rule.
            minutes: Between two checkpoints; 0 for no such rule.
            now: Gives seconds.
        """
        self._steps, self._seconds, self._now = steps, 60 * minutes, now
        self._saved_at = now()

    def due(self, epoch_step: int) -> bool:
        """Say whether to save after a step; if so, count from now.

        Args:
            epoch_step: Steps of the epoch that are done then.
        """
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
    """Whether the run was asked to stop.

    Attributes:
        signal: By which signal; 0 for none.
    """

    signal: int = 0


@contextmanager
def listening_for_signals() -> Iterator[Interruption]:
    """Note the first signal; a second one does what it does to other programs.

    Elsewhere than in the main thread, where Python hears no signals, nothing is noted.
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
