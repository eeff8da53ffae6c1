"""CSV files of landmarks and of boxes, one face a line, pixel coordinates, with a header line.

Landmarks: ``image,[weight,]x0,y0,x1,y1,...[,c0,c1,...]``, where ``weight`` is the confidence in the face and ``c0``,
``c1``, ... are the confidences of its points, 0 to 1. Boxes: ``image,x0,y0,x1,y1``.
"""

import csv
from collections.abc import Iterable, Iterator
from functools import partial
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.datasets.units import UNIT_FACES, TextUnit, unit_faces
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import LARGEST_COORDINATE, Face, labelled_landmarks
from pfld_edge_calib.files import TextLines, named_file, replacing
from pfld_edge_runtime import BoxError
from pfld_edge_runtime.crop import check_boxes

_CORNERS = ("x0", "y0", "x1", "y1")


def read_points_csv(path: Path, images: Path | None = None, group_by: str = "image") -> list[Face]:
    """Read a CSV of faces with any number of points.

    Args:
        path: The file.
        images: Folder that the ``image`` column is relative to; the CSV's own folder where None.
        group_by: What a split never separates: ``image``, or ``person``, the image's name up to the last ``_`` (as in
            LFW and YouTube Faces).

    Returns:
        One `Face` a line.

    Raises:
        FaceSetError: The file is missing or a line is damaged.
    """
    faces = [face for unit in csv_units(path, images, group_by=group_by) for face in unit_faces(unit)]
    if not faces:
        raise FaceSetError(f"{path}: the list is empty: expected a header line and at least one face")
    return faces


def csv_units(
    path: Path, images: Path | None = None, size: int = UNIT_FACES, group_by: str = "image"
) -> Iterator[TextUnit]:
    """Divide a CSV of landmarks into units; reads it once, and keeps none of it.

    Args:
        path: The file.
        images: See `read_points_csv`.
        size: Most faces in a unit.
        group_by: See `read_points_csv`.

    Raises:
        FaceSetError: The file is missing or not a CSV.
    """
    if not path.is_file():
        raise FaceSetError(f"{path}: no such CSV file")
    with path.open("rb") as file:
        lines = TextLines(path, file)
        rows = csv.reader(lines)
        try:
            header = tuple(_header(rows))
            read = partial(_read_rows, path=path, root=images or path.parent, header=header, group_by=group_by)
            while True:
                start, line = lines.offset, lines.number + 1
                count = sum(1 for _ in islice(rows, size))
                if not count:
                    return
                yield TextUnit(path, start, line, count, read)
        except csv.Error as error:
            raise FaceSetError(f"{path}, line {lines.number}: not a CSV file ({error})") from error


def _header(rows: Iterator[list[str]]) -> list[str]:
    """Read the column names, without blank lines above them and empty columns after them."""
    header = [name.strip() for name in next((row for row in rows if not _blank(row)), [])]
    while header and not header[-1]:
        header.pop()
    return header


def _blank(row: Iterable[str]) -> bool:
    return not any(cell.strip() for cell in row)


def _read_rows(
    lines: Iterable[str], first: int, count: int, *, path: Path, root: Path, header: tuple[str, ...], group_by: str
) -> Iterator[Face]:
    points, confidences = _point_columns(list(header), path)
    weight = header.index("weight") if "weight" in header else None
    rows = csv.reader(lines)
    for row in islice(rows, count):
        if _blank(row):
            continue
        where = f"{path}, line {first + rows.line_num - 1}"
        if len(row) < len(header) or not _blank(row[len(header) :]):
            raise FaceSetError(f"{where}: expected {len(header)} columns, found {len(row)}")
        if not row[0].strip():
            raise FaceSetError(f"{where}: names no image")
        group = Path(row[0]).stem.rpartition("_")[0] if group_by == "person" else ""
        yield _face(row, root, points, confidences, weight, group or row[0], where)


def _point_columns(header: list[str], path: Path) -> tuple[slice, slice]:
    """Find the columns of the coordinates, and those of the points' confidences, which end the line if present."""
    start = header.index("x0") if "x0" in header else len(header)
    middle = header.index("c0") if "c0" in header else len(header)
    names = [f"{axis}{i}" for i in range((middle - start) // 2) for axis in "xy"]
    confidences = [f"c{i}" for i in range(len(names) // 2)] if middle < len(header) else []
    if header[:1] != ["image"] or not names or header[start:] != names + confidences:
        raise FaceSetError(f"{path}: the header must read image,[weight,]x0,y0,x1,y1,...[,c0,c1,...]")
    return slice(start, middle), slice(middle, len(header))


def _face(
    row: list[str], root: Path, points: slice, confidences: slice, weight: int | None, group: str, where: str
) -> Face:
    try:
        landmarks = np.array(row[points], np.float64).reshape(-1, 2)
        of_face = 1.0 if weight is None else float(row[weight])
        of_points = np.array(row[confidences], np.float64)
    except ValueError as error:
        raise FaceSetError(f"{where}: {error}") from error
    if (
        not (np.abs(landmarks) < LARGEST_COORDINATE).all()
        or not 0 <= of_face <= 1
        or not ((of_points >= 0) & (of_points <= 1)).all()
    ):
        raise FaceSetError(f"{where}: landmarks must be finite and below 1e9 pixels, and trust from 0 to 1")
    each = of_points.astype(np.float32) if len(of_points) else None
    known, box = labelled_landmarks(landmarks.astype(np.float32), each, where)
    return Face(named_file(root, row[0]), box, known, weight=of_face, point_weights=each, group=group)


def csv_header(path: Path) -> list[str]:
    """Read the column names of a CSV.

    Raises:
        FaceSetError: The file is missing or not a CSV.
    """
    return next((names for _, names in _numbered_rows(path)), [])


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
    rows = _numbered_rows(path)
    _, header = next(rows, (0, []))
    if not {"image", *_CORNERS} <= set(header):
        raise FaceSetError(f"{path}: the header must read image,x0,y0,x1,y1")
    root = path.parent if images is None else images
    faces = [_boxed_face(dict(zip(header, row, strict=False)), root, f"{path}, line {line}") for line, row in rows]
    if not faces:
        raise FaceSetError(f"{path}: no faces in it")
    return faces


def _numbered_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read a CSV: the number of each line that isn't blank, and its cells; the column names come first."""
    if not path.is_file():
        raise FaceSetError(f"{path}: no such CSV file")
    with path.open("rb") as file:
        lines = TextLines(path, file)
        rows = csv.reader(lines)
        try:
            yield lines.number, _header(rows)
            yield from ((lines.number, row) for row in rows if not _blank(row))
        except csv.Error as error:
            raise FaceSetError(f"{path}, line {lines.number}: not a CSV file ({error})") from error


def _boxed_face(row: dict[str, str], root: Path, where: str) -> Face:
    name = row.get("image", "")
    if not name.strip():
        raise FaceSetError(f"{where}: names no image")
    try:
        (box,) = check_boxes([float(row[name]) for name in _CORNERS])
    except KeyError as error:
        raise FaceSetError(f"{where}: {error.args[0]} is missing") from error
    except ValueError as error:
        # A BoxError names the box by its index, which says nothing where there is one a line.
        reason = str(error).removeprefix("box 0 is ") if isinstance(error, BoxError) else str(error)
        raise FaceSetError(f"{where}: {reason}") from error
    return Face(named_file(root, name), np.asarray(box, np.float64), group=name.strip())


def points_row(
    image: str, weight: float, landmarks: NDArray[np.floating], point_weights: NDArray[np.floating]
) -> list[str]:
    """Format one face as a line of a CSV of landmarks.

    Args:
        image: Path of the photograph, as the file is to name it.
        weight: Confidence in the face, 0 to 1, written with three decimals.
        landmarks: ``(P, 2)`` pixels, written with two decimals.
        point_weights: ``(P,)`` confidence in each landmark, 0 to 1, written with three decimals.
    """
    numbers = (f"{value:.2f}" for value in landmarks.ravel())
    return [image, f"{weight:.3f}", *numbers, *(f"{value:.3f}" for value in point_weights)]


def write_points_csv(path: Path, points: int, rows: Iterable[list[str]]) -> None:
    """Write a CSV of landmarks atomically, a row at a time.

    Args:
        path: The CSV; missing folders are made, an existing file is replaced.
        points: Landmarks a face.
        rows: From `points_row`.
    """
    coordinates = [f"{axis}{i}" for i in range(points) for axis in "xy"]
    header = ["image", "weight", *coordinates, *(f"c{i}" for i in range(points))]
    with replacing(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="")
        csv.writer(text, lineterminator="\n").writerows(chain([header], rows))
        text.detach()
