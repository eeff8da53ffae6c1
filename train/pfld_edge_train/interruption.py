"""Signals that ask a run to stop: it finishes its step and saves."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["Interruption", "listening_for_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers of clusters and ``docker stop`` send before they kill."""


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
