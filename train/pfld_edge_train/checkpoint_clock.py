"""When to save within an epoch."""

import time
from collections.abc import Callable

__all__ = ["CheckpointClock"]


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
