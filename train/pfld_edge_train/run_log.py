"""What a run writes about itself: a CSV and its curves, an epoch a line."""

import csv
from dataclasses import asdict, dataclass
from pathlib import Path

from pfld_edge_train.curves import Curve, draw_curves

__all__ = ["EpochResult", "RunLog"]

_COLUMNS = {
    "epoch": "{:d}",
    "loss": "{:.5f}",
    "validation_nme": "{:.6f}",
    "hard_nme": "{:.6f}",
    "learning_rate": "{:.4g}",
    "images_per_second": "{:.0f}",
}
"""Columns and how their numbers are written; the last one alone differs from run to run."""

_FIELDS = {"validation_nme": "nme"}


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What one epoch did.

    Attributes:
        epoch: Counted from 0.
        loss: Mean training loss, in pixels.
        nme: Of the averaged weights on the validation faces.
        best: Whether this is the best so far.
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
    """``log.csv`` and ``curves.png`` in a run's folder."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; nothing is written yet."""
        self._folder = folder

    def add(self, result: EpochResult) -> None:
        """Add an epoch; what a killed run said of it or of later ones is dropped."""
        rows = [row for row in self._rows() if int(row["epoch"]) < result.epoch]
        values = asdict(result)
        rows.append({name: form.format(values[_FIELDS.get(name, name)]) for name, form in _COLUMNS.items()})
        path = self._folder / "log.csv"
        partial = path.with_name(".log.csv.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(_COLUMNS), restval="")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(path)
        draw_curves(
            [int(row["epoch"]) for row in rows],
            [
                [Curve("training loss, pixels", [_number(row["loss"]) for row in rows])],
                [
                    Curve("validation NME", [_number(row["validation_nme"]) for row in rows]),
                    Curve("its hard views", [_number(row.get("hard_nme", "")) for row in rows]),
                ],
            ],
            self._folder / "curves.png",
        )

    def _rows(self) -> list[dict[str, str]]:
        """Lines that stand there; those of an older version may lack columns, damaged ones are left out."""
        path = self._folder / "log.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [{name: value for name, value in row.items() if name in _COLUMNS} for row in csv.DictReader(file)]
        return [row for row in rows if (row.get("epoch") or "").isdigit()]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
