"""Shows a training run on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pfld_edge.console import console
from pfld_edge_train.run_log import Callback, EpochResult, RunPlan, TextProgress, result_line

_ESTIMATE_SECONDS = 600.0
"""The time left is judged by the speed of the last ten minutes, pauses for validation included."""


class _Bars(Callback):
    """A bar for the epoch and one for the run; a line for each epoch above them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._run, self._epoch = progress.add_task("run", total=None), progress.add_task("preparing", total=None)
        self._epochs, self._steps, self._name = 0, 0, ""

    def begin(self, plan: RunPlan) -> None:
        self._epochs, self._steps = plan.epochs, plan.steps
        for line in plan.lines:
            self._print(line)
        self._progress.reset(self._run, total=plan.epochs * plan.steps, completed=plan.first_step)

    def note(self, text: str) -> None:
        self._print(f"Note: {text}")

    def epoch(self, number: int, done: int) -> None:
        self._name = f"epoch {number + 1}/{self._epochs}"
        self._progress.reset(self._epoch, total=self._steps, completed=done, description=self._name)

    def step(self, loss: float) -> None:
        self._progress.update(self._epoch, advance=1, description=f"{self._name} loss {loss:.2f}")
        self._progress.advance(self._run)

    def result(self, result: EpochResult) -> None:
        self._print(result_line(result, self._epochs))

    def _print(self, text: str) -> None:
        self._progress.console.print(text, markup=False, soft_wrap=True)


@contextmanager
def training_progress(*, quiet: bool = False) -> Iterator[Callback]:
    """Show a run on standard error, unless `quiet`: bars on a terminal, else a line at least every half minute."""
    if quiet:
        yield Callback()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    terminal = console(stderr=True)
    if not terminal.is_terminal:
        yield TextProgress(sys.stderr)
        return
    with Progress(*columns, console=terminal, speed_estimate_period=_ESTIMATE_SECONDS) as bars:
        yield _Bars(bars)
