"""What a run records after every epoch: ``log.csv``, ``curves.png`` and TensorBoard's events."""

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    """The figures of one epoch.

    Attributes:
        epoch: Counted from 0.
        loss: Mean training loss, in pixels.
        nme: Of the averaged weights on the validation faces.
        best: Whether this is the best so far, the starting weights of ``--init`` included.
        hard_nme: Of the averaged weights on the validation faces' hard views.
        learning_rate: At its end.
        images_per_second: Of training, since the run was started or resumed; 0 where unknown.
    """

    epoch: int
    loss: float
    nme: float
    best: bool
    hard_nme: float = float("nan")
    learning_rate: float = 0.0
    images_per_second: float = 0.0


class RunLog:
    """``log.csv`` and ``curves.png`` in a run's folder, and the events of an open TensorBoard writer."""

    def __init__(self, folder: Path, events: Any = None) -> None:  # noqa: ANN401 - TensorBoard is optional
        """Take the folder; nothing is written yet."""
        self._folder, self._events = folder, events

    def add(self, result: EpochResult) -> None:
        """Add an epoch; lines of it or of later epochs, from a killed run, are dropped."""
        rows = [row for row in self._rows() if int(row["epoch"]) < result.epoch]
        values = asdict(result) | {"validation_nme": result.nme}
        rows.append({name: form.format(values[name]) for name, form in _COLUMNS.items()})
        partial = self._folder / ".log.csv.partial"
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(_COLUMNS), restval="")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self._folder / "log.csv")
        epochs = [int(row["epoch"]) + 1 for row in rows]
        names = {"loss": "training loss, pixels", "validation_nme": "validation NME", "hard_nme": "NME of hard views"}
        loss, nme, hard = ((names[column], [_number(row.get(column)) for row in rows]) for column in names)
        draw_curves(epochs, [[loss], [nme, hard]], self._folder / "curves.png")
        if self._events is not None:
            figures = {"loss": result.loss, "nme/validation": result.nme, "nme/hard views": result.hard_nme}
            for name, value in {**figures, "learning rate": result.learning_rate}.items():
                self._events.add_scalar(name, value, result.epoch)
            self._events.flush()

    def close(self) -> None:
        """Close the events' file."""
        if self._events is not None:
            self._events.close()

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

    Args:
        epochs: Counted from 1.
        panels: Curves that share axes: a name and a value for each epoch; values that are not positive leave a gap.
        path: Written by renaming.
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
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(path)


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
