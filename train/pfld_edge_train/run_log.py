"""What a run writes about itself: a CSV, curves, and TensorBoard's events where its package is installed."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfld_edge_train.curves import draw_curves
from pfld_edge_train.errors import TrainConfigError

__all__ = ["EpochResult", "RunLog"]

_HEADER = ["epoch", "loss", "validation_nme", "learning_rate", "images_per_second"]


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What one epoch did.

    Attributes:
        epoch: Counted from 0.
        loss: Mean training loss, in pixels.
        nme: Of the averaged weights on the validation faces.
        best: This is the best so far.
        learning_rate: At its end.
        images_per_second: Of training, 0 where unknown.
    """

    epoch: int
    loss: float
    nme: float
    best: bool
    learning_rate: float = 0.0
    images_per_second: float = 0.0


class RunLog:
    """The log of one run, in its folder."""

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        """Open the log; ``log.csv`` and ``curves.png`` are written after each epoch.

        Raises:
            TrainConfigError: TensorBoard is asked for and not installed.
        """
        self._folder = folder
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise TrainConfigError(
                    "tensorboard = true needs the package tensorboard: pip install tensorboard, or leave it out"
                ) from error
            self._writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, result: EpochResult) -> None:
        """Add an epoch; what a killed run said of it or of later ones is dropped."""
        path = self._folder / "log.csv"
        rows = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if row and row[0] != "epoch" and int(row[0]) < result.epoch]
        rate = f"{result.learning_rate:.3g}"
        rows.append(
            [str(result.epoch), f"{result.loss:.5f}", f"{result.nme:.6f}", rate, f"{result.images_per_second:.0f}"]
        )
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            csv.writer(file).writerows([_HEADER, *rows])
        partial.replace(path)
        losses, errors = ([float(row[column]) for row in rows] for column in (1, 2))
        draw_curves(losses, errors, self._folder / "curves.png")
        if self._writer is not None:
            for name, value in (("loss", result.loss), ("validation NME", result.nme), ("rate", result.learning_rate)):
                self._writer.add_scalar(name, value, result.epoch)
            self._writer.flush()
