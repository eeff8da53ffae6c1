"""Reads CSV files that say where faces are: ``image,x0,y0,x1,y1``, pixel coordinates, a header line, a line a face."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_runtime import BoxError
from pfld_edge_runtime.crop import check_boxes

__all__ = ["read_boxes_csv"]

_CORNERS = ("x0", "y0", "x1", "y1")


def read_boxes_csv(path: Path, images: Path | None = None) -> list[Face]:
    """Read a CSV of boxes; columns of other names are ignored.

    Args:
        path: The file.
        images: Folder that the ``image`` column is relative to; the CSV's own folder where None.

    Returns:
        One `Face` a line, without landmarks.

    Raises:
        FaceSetError: The file is missing, a line is damaged, or there is none.
    """
    if not path.is_file():
        raise FaceSetError(f"{path}: no such CSV file")
    root = path.parent if images is None else images
    faces = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"image", *_CORNERS} <= set(rows.fieldnames or ()):
                raise FaceSetError(f"{path}: the header must read image,x0,y0,x1,y1")
            for number, row in enumerate(rows, 2):
                box = _box([row[name] for name in _CORNERS], f"{path}, line {number}")
                faces.append(Face(root / row["image"], box, group=row["image"]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise FaceSetError(f"{path}: not a CSV file ({error})") from error
    if not faces:
        raise FaceSetError(f"{path}: no faces in it")
    return faces


def _box(values: list[str], where: str) -> NDArray[np.float64]:
    try:
        (box,) = check_boxes([float(value) for value in values])
        return np.asarray(box, np.float64)
    except (TypeError, ValueError) as error:
        # A BoxError counts boxes from 0, which says nothing where there is one a line.
        reason = str(error).removeprefix("box 0 is ") if isinstance(error, BoxError) else str(error)
        raise FaceSetError(f"{where}: {reason}") from error
