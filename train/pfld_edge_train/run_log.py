"""What a run tells: callbacks and lines of text, ``log.csv``, ``curves.png`` and TensorBoard's events."""

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from pfld_edge_calib.files import replacing, write_atomically

_SECONDS = 30.0
"""Between two lines within an epoch, and between two drawings of the curves, which take a second of processor time."""
_COLUMNS = {
    "epoch": "{:d}",
    "loss": "{:.5f}",
    "validation_nme": "{:.6f}",
    "hard_nme": "{:.6f}",
    "learning_rate": "{:.4g}",
    "images_per_second": "{:.0f}",
}
"""Columns and how their numbers are written; the last one alone differs from run to run."""


@dataclass(frozen=True, slots=True)
class EpochResult:
    """The figures of one epoch, counted from 0: mean training loss in pixels, NME of the averaged weights.

    `best`: the best so far, the starting weights of ``--init`` included. `learning_rate` is that at its end.
    `images_per_second` counts since the run was started or resumed; 0 where unknown.
    """

    epoch: int
    loss: float
    nme: float
    best: bool
    hard_nme: float = float("nan")
    learning_rate: float = 0.0
    images_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run in numbers, before it starts: epochs in all, steps of an epoch, steps done, and lines for the user."""

    epochs: int
    steps: int
    first_step: int
    lines: tuple[str, ...]


class Callback:
    """Callbacks of a run, called in its first process; these do nothing."""

    def begin(self, plan: RunPlan) -> None:
        """Called once, before the first step."""

    def note(self, text: str) -> None:
        """Called with a remark for the user."""

    def epoch(self, number: int, done: int) -> None:
        """Called when epoch `number`, from 0, begins or is resumed after `done` steps."""

    def step(self, loss: float) -> None:
        """Called after a step with its loss, in pixels."""

    def result(self, result: EpochResult) -> None:
        """Called after an epoch."""


class TextProgress(Callback):
    """Prints the plan, a line for each epoch, and one every half minute within an epoch."""

    def __init__(self, output: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._output, self._now = output, now
        self._plan = RunPlan(0, 0, 0, ())
        self._epoch = self._step = 0
        self._written = now()

    def begin(self, plan: RunPlan) -> None:
        """Write the plan."""
        self._plan = plan
        for line in plan.lines:
            self._write(line)

    def note(self, text: str) -> None:
        """Write a remark."""
        self._write(f"Note: {text}")

    def epoch(self, number: int, done: int) -> None:
        """Count from the epoch's first step."""
        self._epoch, self._step = number, done

    def step(self, loss: float) -> None:
        """Write a line if the last one is half a minute old."""
        self._step += 1
        if self._now() - self._written >= _SECONDS:
            place = f"epoch {self._epoch + 1}/{self._plan.epochs}, step {self._step}/{self._plan.steps}"
            self._write(f"{place}: loss {loss:.3f}")

    def result(self, result: EpochResult) -> None:
        """Write an epoch's line."""
        self._write(result_line(result, self._plan.epochs))

    def _write(self, line: str) -> None:
        self._output.write(f"{line}\n")
        self._output.flush()
        self._written = self._now()


def result_line(result: EpochResult, epochs: int) -> str:
    """Describe an epoch of a run of `epochs` epochs in a line."""
    errors = f"validation NME {result.nme:.5f}, hard views {result.hard_nme:.5f}{' (best)' if result.best else ''}"
    speed = f"{result.images_per_second:.0f} images/s"
    return f"epoch {result.epoch + 1}/{epochs}: loss {result.loss:.3f}, {errors}, {speed}"


class RunLog:
    """``log.csv`` and ``curves.png`` in a run's folder, and the events of an open TensorBoard writer."""

    def __init__(self, folder: Path, events: Any = None) -> None:  # noqa: ANN401 - TensorBoard is optional
        self._folder, self._events = folder, events
        self._drawn, self._undrawn = -_SECONDS, list[dict[str, str]]()

    def add(self, result: EpochResult) -> None:
        """Add an epoch; lines of it or of later epochs, from a killed run, are dropped.

        The curves are drawn at once if the last drawing is half a minute old, else with a later epoch or by `close`.
        """
        rows = [row for row in self._rows() if int(row["epoch"]) < result.epoch]
        values = asdict(result) | {"validation_nme": result.nme}
        rows.append({name: form.format(values[name]) for name, form in _COLUMNS.items()})
        written = io.StringIO(newline="")
        writer = csv.DictWriter(written, list(_COLUMNS), restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._folder / "log.csv", written.getvalue().encode())
        self._undrawn = rows
        if time.monotonic() - self._drawn >= _SECONDS:
            self._draw()
        if self._events is not None:
            figures = {"loss": result.loss, "nme/validation": result.nme, "nme/hard views": result.hard_nme}
            for name, value in {**figures, "learning rate": result.learning_rate}.items():
                self._events.add_scalar(name, value, result.epoch)
            self._events.flush()

    def close(self) -> None:
        """Draw the curves of the last epochs, and close the events' file."""
        if self._undrawn:
            self._draw()
        if self._events is not None:
            self._events.close()

    def _draw(self) -> None:
        rows, self._undrawn = self._undrawn, []
        epochs = [int(row["epoch"]) + 1 for row in rows]
        names = {"loss": "training loss, pixels", "validation_nme": "validation NME", "hard_nme": "NME of hard views"}
        loss, nme, hard = ((names[column], [_number(row.get(column)) for row in rows]) for column in names)
        draw_curves(epochs, [[loss], [nme, hard]], self._folder / "curves.png")
        self._drawn = time.monotonic()

    def _rows(self) -> list[dict[str, str]]:
        """Read the log; damaged lines are left out."""
        path = self._folder / "log.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [{name: value for name, value in row.items() if name in _COLUMNS} for row in csv.DictReader(file)]
        return [row for row in rows if (row.get("epoch") or "").isdigit()]


def draw_curves(epochs: Sequence[int], panels: Sequence[Sequence[tuple[str, Sequence[float]]]], path: Path) -> None:
    """Write a PNG of panels below each other with logarithmic y axes.

    A panel's curves share axes: each is a name and a value for every epoch, counted from 1; values that are not
    positive leave a gap.
    """
    from matplotlib.figure import Figure  # costs half a second, which reading a configuration must not

    figure = Figure(figsize=(9, 3.2 * len(panels)), layout="constrained")
    for axes, curves in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for name, values in curves:
            known = [value if 0 < value < float("inf") else float("nan") for value in values]
            lowest = min((value for value in known if value == value), default=float("nan"))
            axes.plot(epochs, known, marker="o", markersize=3, label=f"{name}: {values[-1]:.4g}, lowest {lowest:.4g}")
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.grid(which="both", alpha=0.3)
        axes.legend(loc="upper right")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)


def open_tensorboard(folder: Path, next_epoch: int) -> Any:  # noqa: ANN401 - TensorBoard is optional
    """Open a TensorBoard writer that hides older events from `next_epoch` on; None without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=next_epoch)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
