"""Shows a run as lines of text, for logs."""

from typing import TextIO

from pfld_edge_train.run_log import EpochResult
from pfld_edge_train.run_plan import RunPlan
from pfld_edge_train.watcher import Watcher

__all__ = ["TextWatcher", "result_line"]


class TextWatcher(Watcher):
    """Writes what the run will do, and a line an epoch."""

    def __init__(self, output: TextIO) -> None:
        """Take where to write."""
        self._output = output
        self._epochs = 0

    def begin(self, plan: RunPlan) -> None:
        """Write the plan."""
        self._epochs = plan.epochs
        for line in plan.lines:
            self._write(line)

    def note(self, text: str) -> None:
        """Write a remark."""
        self._write(f"Note: {text}")

    def result(self, result: EpochResult) -> None:
        """Write an epoch's line."""
        self._write(result_line(result, self._epochs))

    def _write(self, line: str) -> None:
        self._output.write(f"{line}\n")
        self._output.flush()


def result_line(result: EpochResult, epochs: int) -> str:
    """Put an epoch in a line.

    Args:
        result: The epoch.
        epochs: Of the whole run.
    """
    errors = f"validation NME {result.nme:.5f}, hard views {result.hard_nme:.5f}{' (best)' if result.best else ''}"
    speed = f"{result.images_per_second:.0f} images/s"
    return f"epoch {result.epoch + 1}/{epochs}: loss {result.loss:.3f}, {errors}, {speed}"
