"""Reads landmark CSV files: ``image,[weight,]x0,y0,x1,y1,...[,c0,c1,...]``, pixel coordinates and a header line."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face, tight_box

__all__ = ["points_csv_faces", "read_points_csv"]


def read_points_csv(path: Path, images: Path | None = None, group_by: str = "image") -> list[Face]:
    """Read a CSV of faces with any number of points.

    Args:
        path: The file. Trust in the landmarks is optional: of all of them in a ``weight`` column, of each in ``c0``,
            ``c1``, ..., all from 0 to 1.
        images: Folder that the ``image`` column is relative to; the CSV's own folder where None.
        group_by: What faces must share to stay on one side of a split: ``image``, or ``person``, the image's name up
            to the last ``_`` (as LFW and YouTube Faces name theirs).

    Returns:
        One `Face` a line.

    Raises:
        FaceSetError: The file is missing or a line is damaged.
    """
    if not path.is_file():
        raise FaceSetError(f"{path}: no such CSV file")
    root = path.parent if images is None else images
    try:
        # Spreadsheet programs begin a file with a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise FaceSetError(f"{path}: not a CSV file ({error})") from error
    if len(rows) < 2:
        raise FaceSetError(f"{path}: expected a header line and at least one face")
    faces = list(points_csv_faces(rows, root, path))
    if group_by == "person":
        return [replace(face, group=face.image.stem.rpartition("_")[0] or face.group) for face in faces]
    return faces


def points_csv_faces(rows: Iterable[list[str]], root: Path, path: Path, line: int = 2) -> Iterator[Face]:
    """Read the faces of a CSV's rows, or of some of them.

    Args:
        rows: The header, and any rows.
        root: Folder that the ``image`` column is relative to.
        path: The file, for messages.
        line: Number of the first row after the header.

    Raises:
        FaceSetError: A row is damaged.
    """
    left = iter(rows)
    header = next(left)
    points, trusts = _point_columns(header, path)
    weight = header.index("weight") if "weight" in header else None
    for number, row in enumerate(left, line):
        where = f"{path}, line {number}"
        if len(row) != len(header):
            raise FaceSetError(f"{where}: expected {len(header)} columns, found {len(row)}")
        yield _face(row, root, points, trusts, weight, where)


def _point_columns(header: list[str], path: Path) -> tuple[slice, slice]:
    """Find the columns of the coordinates, and those of each point's trust, which end the line where there are any."""
    start = header.index("x0") if "x0" in header else len(header)
    middle = header.index("c0") if "c0" in header else len(header)
    names = [f"{axis}{i}" for i in range((middle - start) // 2) for axis in "xy"]
    trusts = [f"c{i}" for i in range(len(names) // 2)] if middle < len(header) else []
    if header[:1] != ["image"] or not names or header[start:] != names + trusts:
        raise FaceSetError(f"{path}: the header must read image,[weight,]x0,y0,x1,y1,...[,c0,c1,...]")
    return slice(start, middle), slice(middle, len(header))


def _face(row: list[str], root: Path, points: slice, trusts: slice, weight: int | None, where: str) -> Face:
    try:
        landmarks = np.array(row[points], np.float32).reshape(-1, 2)
        trust = 1.0 if weight is None else float(row[weight])
        each = np.array(row[trusts], np.float32)
    except ValueError as error:
        raise FaceSetError(f"{where}: {error}") from error
    if not np.isfinite(landmarks).all() or not 0 <= trust <= 1 or not ((each >= 0) & (each <= 1)).all():
        raise FaceSetError(f"{where}: landmarks must be finite and trust from 0 to 1")
    known = each if len(each) else None
    return Face(root / row[0], tight_box(landmarks), landmarks, weight=trust, point_weights=known, group=row[0])
