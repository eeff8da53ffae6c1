"""CSV files of landmarks and of boxes, one face a line, pixel coordinates, with a header line.

Landmarks: ``image,[weight,]x0,y0,x1,y1,...[,c0,c1,...]``, where ``weight`` is the confidence in the face and ``c0``,
``c1``, ... are the confidences of its points, 0 to 1; without them a point at -1, -1, NaN, or in empty cells is
unlabelled. Boxes: ``image,x0,y0,x1,y1``. A file that is missing, has a damaged line, or has no face is a FaceSetError.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path

import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import UNIT_FACES, Face, Unit, labelled_face, text_units, unit_faces, without_unlabelled
from pfld_edge_calib.files import TextLines, named_file, number_fault, replacing
from pfld_edge_runtime import BoxError
from pfld_edge_runtime.arrays import Float64Array
from pfld_edge_runtime.crop import check_boxes

_CORNERS = ("x0", "y0", "x1", "y1")


def read_points_csv(path: Path, images: Path | None = None, group_by: str = "image") -> list[Face]:
    """Read a CSV of faces with any number of points; names are relative to `images`, or to the CSV's own folder.

    A split never separates the faces of one ``image``, or by `group_by` of one ``person``: the image's name up to the
    last ``_`` (as in LFW and YouTube Faces).
    """
    faces = [face for unit in csv_units(path, images, group_by=group_by) for face in unit_faces(unit)]
    if not faces:
        raise FaceSetError(f"{path}: the list is empty: expected a header line and at least one face")
    return faces


def csv_units(
    path: Path, images: Path | None = None, size: int = UNIT_FACES, group_by: str = "image"
) -> Iterator[Unit]:
    """Divide a CSV of landmarks into units of at most `size` faces; reads it once, and keeps none of it."""
    with _opened(path) as (lines, rows, header):
        columns, root = _point_columns(header, path), images or path.parent
        read = partial(_read_rows, path=path, root=root, header=header, columns=columns, group_by=group_by)
        yield from text_units(path, lines, rows, read, size)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[TextLines, Iterator[list[str]], list[str]]]:
    """Open a CSV: its lines, its rows after the header, and the column names."""
    if not path.is_file():
        raise FaceSetError(f"{path}: no such CSV file")
    with path.open("rb") as file:
        lines = TextLines(path, file)
        rows = csv.reader(lines)
        try:
            header = [name.strip() for name in next((row for row in rows if not _blank(row)), [])]
            while header and not header[-1]:
                header.pop()
            yield lines, rows, header
        except csv.Error as error:
            raise FaceSetError(f"{path}, line {lines.number}: not a CSV file ({error})") from error


def _blank(row: Iterable[str]) -> bool:
    return not any(cell.strip() for cell in row)


def _read_rows(
    lines: Iterable[str],
    first: int,
    count: int,
    *,
    path: Path,
    root: Path,
    header: Sequence[str],
    columns: tuple[slice, slice],
    group_by: str,
) -> Iterator[Face]:
    points, confidences = columns
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
        try:
            cells = [cell if cell.strip() else "nan" for cell in row[points]]  # for unlabelled points
            landmarks: Float64Array = np.array(cells, np.float64).reshape(-1, 2)
            of_face = 1.0 if weight is None else float(row[weight])
            of_points = np.array(row[confidences], np.float64) if row[confidences] else None
        except ValueError as error:
            raise FaceSetError(f"{where}: {number_fault(error)}") from error
        if of_points is None:
            landmarks, of_points = without_unlabelled(landmarks)
        group = group_of(row[0], group_by)
        image = named_file(root, row[0])
        yield labelled_face(image, landmarks, where, weight=of_face, point_weights=of_points, group=group)


def group_of(image: str, group_by: str) -> str:
    """Name the group of a photograph's faces, by ``image`` or ``person`` as in `read_points_csv`."""
    person = Path(image).stem.rpartition("_")[0] if group_by == "person" else ""
    return person or image


def _point_columns(header: list[str], path: Path) -> tuple[slice, slice]:
    """Find the columns of the coordinates, and those of the points' confidences, which end the line if present."""
    start = header.index("x0") if "x0" in header else len(header)
    middle = header.index("c0") if "c0" in header else len(header)
    points = (middle - start) // 2
    expected = _point_names(points, confidences=middle < len(header))
    if header[:1] != ["image"] or points < 1 or header[start:] != expected:
        raise FaceSetError(
            f"{path}: the header must read image,[weight,]x0,y0,x1,y1,...[,c0,c1,...]; {_header_fault(header)}"
        )
    return slice(start, middle), slice(middle, len(header))


def _header_fault(header: Sequence[str]) -> str:
    """Say what is wrong with a header."""
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        return "columns are parted by commas, and numbers have a decimal point"
    begin = ",".join(header[:4])[:60] + (",..." if len(header) > 4 else "")
    return f"it reads {begin}" if header else "the file has none"


def _point_names(points: int, *, confidences: bool) -> list[str]:
    return [f"{axis}{i}" for i in range(points) for axis in "xy"] + [f"c{i}" for i in range(points * confidences)]


def csv_header(path: Path) -> list[str]:
    """Read the column names of a CSV."""
    with _opened(path) as (_, _, header):
        return header


def read_boxes_csv(path: Path, images: Path | None = None) -> list[Face]:
    """Read a CSV of boxes, faces without landmarks, like `read_points_csv`; columns of other names are ignored."""
    root = path.parent if images is None else images
    with _opened(path) as (lines, rows, header):
        if not {"image", *_CORNERS} <= set(header):
            raise FaceSetError(f"{path}: the header must read image,x0,y0,x1,y1")
        faces = [
            _boxed_face(dict(zip(header, row, strict=False)), root, f"{path}, line {lines.number}")
            for row in rows
            if not _blank(row)
        ]
    if not faces:
        raise FaceSetError(f"{path}: no faces in it")
    return faces


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
        reason = str(error).removeprefix("box 0 is ") if isinstance(error, BoxError) else number_fault(error)
        raise FaceSetError(f"{where}: {reason}") from error
    return Face(named_file(root, name), np.asarray(box, np.float64), group=name.strip())


def points_row(image: str, face: Face) -> list[str]:
    """Format a face with landmarks as a line of a CSV that names its photograph `image`.

    Landmarks are written with two decimals, the confidences in the face and in each landmark with three.
    """
    landmarks = np.zeros((0, 2)) if face.landmarks is None else face.landmarks
    weights = np.ones(len(landmarks)) if face.point_weights is None else face.point_weights
    numbers = (f"{value:.2f}" for value in landmarks.ravel())
    return [image, f"{face.weight:.3f}", *numbers, *(f"{value:.3f}" for value in weights)]


def write_points_csv(path: Path, points: int, rows: Iterable[list[str]]) -> None:
    """Write a CSV of faces with `points` landmarks atomically, a row of `points_row` at a time."""
    header = ["image", "weight", *_point_names(points, confidences=True)]
    with replacing(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="")
        csv.writer(text, lineterminator="\n").writerows(chain([header], rows))
        text.detach()
