"""Writes the CSV files that `pfld_edge_calib.points_csv` reads, with trust in the face and in each landmark."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["points_header", "points_row", "write_points_csv"]


def points_header(points: int) -> list[str]:
    """Name the columns for faces of some number of landmarks: ``image,weight,x0,y0,...,c0,c1,...``."""
    coordinates = [f"{axis}{i}" for i in range(points) for axis in "xy"]
    return ["image", "weight", *coordinates, *(f"c{i}" for i in range(points))]


def points_row(
    image: str, weight: float, landmarks: NDArray[np.floating], point_weights: NDArray[np.floating]
) -> list[str]:
    """Write one face in the columns of `points_header`.

    Args:
        image: Path of the photograph as the file shall name it.
        weight: Trust in the face, 0 to 1; three decimals are kept.
        landmarks: ``(P, 2)`` pixels; two decimals are kept.
        point_weights: ``(P,)`` trust in each landmark, 0 to 1; three decimals are kept.
    """
    numbers = (f"{value:.2f}" for value in landmarks.ravel())
    return [image, f"{weight:.3f}", *numbers, *(f"{value:.3f}" for value in point_weights)]


def write_points_csv(path: Path, points: int, rows: Iterable[list[str]]) -> None:
    """Write a file, a row at a time, under a temporary name, and rename it: never half of one.

    Args:
        path: The CSV; missing folders are made, an existing file is replaced.
        points: Landmarks a face.
        rows: From `points_row`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(points_header(points))
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
