"""Lists of faces, a line a face: CSV files of points and WFLW's own. A unit knows the byte at which its lines begin."""

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.points_csv import points_csv_faces
from pfld_edge_calib.sources.unit import UNIT_FACES, SourcePhoto
from pfld_edge_calib.wflw import wflw_face

__all__ = ["CsvUnit", "WflwUnit", "csv_units", "list_hash", "wflw_units"]


@dataclass(frozen=True, slots=True)
class CsvUnit:
    """Neighbouring lines of a CSV of points.

    Attributes:
        path: The CSV.
        images: Folder that its names are relative to.
        header: Its column names.
        start: Byte at which the first line begins.
        line: Number of that line, the header is 1.
        count: Lines.
    """

    path: Path
    images: Path
    header: tuple[str, ...]
    start: int
    line: int
    count: int

    def photos(self) -> Iterator[SourcePhoto]:
        """Read them in order."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            rows = islice(csv.reader(_text(self.path, file)), self.count)
            for face in points_csv_faces([list(self.header), *rows], self.images, self.path, self.line):
                yield _photo(face)


@dataclass(frozen=True, slots=True)
class WflwUnit:
    """Neighbouring lines of one of WFLW's lists.

    Attributes:
        path: The list.
        images: ``WFLW_images``.
        start: Byte at which the first line begins.
        line: Number of that line, from 1.
        count: Lines.
    """

    path: Path
    images: Path
    start: int
    line: int
    count: int

    def photos(self) -> Iterator[SourcePhoto]:
        """Read them in order."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            for number, line in enumerate(islice(_text(self.path, file), self.count), self.line):
                if line.strip():
                    yield _photo(wflw_face(line, self.images, f"{self.path}, line {number}"))


def csv_units(path: Path, images: Path | None = None, size: int = UNIT_FACES) -> Iterator[CsvUnit]:
    """Cut a CSV of points into units; reads it once, and keeps none of it.

    Raises:
        FaceSetError: It is missing, or no CSV.
    """
    if not path.is_file():
        raise FaceSetError(f"{path}: no such CSV file")
    with path.open("rb") as file:
        lines = _CountedLines(path, file)
        rows = csv.reader(lines)
        try:
            header = tuple(next(rows, []))
            start, line, count = lines.offset, lines.number, 0
            for _ in rows:
                count += 1
                if count == size:
                    yield CsvUnit(path, images or path.parent, header, start, line + 1, count)
                    start, line, count = lines.offset, lines.number, 0
        except csv.Error as error:
            raise FaceSetError(f"{path}: not a CSV file ({error})") from error
    if count:
        yield CsvUnit(path, images or path.parent, header, start, line + 1, count)


def wflw_units(path: Path, images: Path, size: int = UNIT_FACES) -> Iterator[WflwUnit]:
    """Cut one of WFLW's lists into units.

    Raises:
        FaceSetError: It is missing.
    """
    if not path.is_file():
        raise FaceSetError(f"{path}: no such WFLW list")
    with path.open("rb") as file:
        lines = _CountedLines(path, file)
        while True:
            start, line = lines.offset, lines.number
            count = sum(1 for _ in islice(lines, size))
            if not count:
                return
            yield WflwUnit(path, images, start, line + 1, count)


def list_hash(path: Path) -> str:
    """Sum up a list's contents."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _CountedLines:
    """A file's lines as text.

    Attributes:
        offset: Byte at which the next one begins.
        number: Lines read.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.offset = self.number = 0
        self._path, self._file = path, file

    def __iter__(self) -> "_CountedLines":
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        text = _decoded(self._path, line, self.offset == 0)
        self.offset += len(line)
        self.number += 1
        return text


def _text(path: Path, file: BinaryIO) -> Iterator[str]:
    first = file.tell() == 0
    for line in file:
        yield _decoded(path, line, first)
        first = False


def _decoded(path: Path, line: bytes, first: bool) -> str:
    try:
        # Spreadsheet programs begin a file with a byte order mark.
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise FaceSetError(f"{path}: not a text file ({error})") from error


def _photo(face: Face) -> SourcePhoto:
    return SourcePhoto(face.image, face.group, (face,))
