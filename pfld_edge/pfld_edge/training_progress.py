"""Shows a training run: lines of text and, on a terminal, bars."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pfld_edge.console import console
from pfld_edge_train.run_log import Callback, EpochResult, RunPlan

_ESTIMATE_SECONDS = 600.0
"""The time left is judged by the speed of the last ten minutes, pauses for validation included."""
_SECONDS = 30.0
"""Between two lines within an epoch, where there are no bars."""


class RunProgress(Callback):
    """Prints the plan and a line for each epoch, above a bar for the epoch and one for the run.

    Without a terminal there are no bars, but a line every half minute within an epoch.
    """

    def __init__(self, terminal: Console, now: Callable[[], float] = time.monotonic) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times, quiet = (TimeElapsedColumn(), TimeRemainingColumn()), not terminal.is_terminal
        self.bars = Progress(
            *columns,
            *times,
            console=terminal,
            speed_estimate_period=_ESTIMATE_SECONDS,
            disable=quiet,
        )
        self._run, self._epoch = self.bars.add_task("run", total=None), self.bars.add_task("preparing", total=None)
        self._now, self._written = now, now()
        self._plan, self._name, self._step = RunPlan(0, 0, 0, ()), "", 0

    def begin(self, plan: RunPlan) -> None:
        """Print the plan."""
        self._plan = plan
        for line in plan.lines:
            self._print(line)
        self.bars.reset(self._run, total=plan.epochs * plan.steps, completed=plan.first_step)

    def note(self, text: str) -> None:
        """Print a remark."""
        self._print(f"Note: {text}")

    def epoch(self, number: int, done: int) -> None:
        """Count from the epoch's first step."""
        self._name, self._step = f"epoch {number + 1}/{self._plan.epochs}", done
        self.bars.reset(self._epoch, total=self._plan.steps, completed=done, description=self._name)

    def step(self, loss: float) -> None:
        """Move the bars, or print a line if the last one is half a minute old."""
        self._step += 1
        self.bars.update(self._epoch, advance=1, description=f"{self._name} loss {loss:.2f}")
        self.bars.advance(self._run)
        if self.bars.disable and self._now() - self._written >= _SECONDS:
            self._print(f"{self._name}, step {self._step}/{self._plan.steps}: loss {loss:.3f}")

    def result(self, result: EpochResult) -> None:
        """Print an epoch's line."""
        best = " (best)" if result.best else ""
        errors = f"validation NME {result.nme:.5f}, hard views {result.hard_nme:.5f}{best}"
        epoch = f"epoch {result.epoch + 1}/{self._plan.epochs}"
        self._print(f"{epoch}: loss {result.loss:.3f}, {errors}, {result.images_per_second:.0f} images/s")

    def _print(self, text: str) -> None:
        self.bars.console.print(text, markup=False, soft_wrap=True)
        self._written = self._now()


@contextmanager
def training_progress(*, quiet: bool = False) -> Iterator[Callback]:
    """Show a run on standard error, unless `quiet`."""
    if quiet:
        yield Callback()
        return
    progress = RunProgress(console(stderr=True))
    with progress.bars:
        yield progress
