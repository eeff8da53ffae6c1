"""Work units: parts of a dataset of any size that one process reads, a photograph at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.files import TextLines

UNIT_FACES = 256
"""Lines or photographs in a unit: tenths of a second of work, and a multiple of the models' batch size."""

Skip = Callable[[FaceSetError], object]
"""Takes the error of a file that can't be used, so that the others can; what it raises ends the run."""


@dataclass(frozen=True, slots=True)
class DatasetPhoto:
    """A photograph of a dataset with its annotated faces; None where it has no annotation.

    `image` is its path, in a shard the shard's path joined with the member's name; `name` identifies it wherever the
    dataset lies. `encoded` is None where `image` is to be read. `error` says why this member of a shard, or the rest of
    the shard, can't be used.
    """

    image: Path
    name: str
    faces: tuple[Face, ...] | None = None
    encoded: bytes | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a dataset that one process works on: small and picklable, it says where its photographs are.

    `photos` reads `count` photographs, or lines of a list, in order; FaceSetError at a damaged line.
    """

    count: int
    photos: Callable[[], Iterator[DatasetPhoto]]


def unit_faces(unit: Unit, skip: Skip | None = None) -> Iterator[Face]:
    """Read the annotated faces of a unit in order; a damaged line of a list is a FaceSetError.

    So is a photograph of a shard that is damaged or has no annotation, unless `skip` takes the error.
    """
    for photo in unit.photos():
        error = photo.error
        if not error and photo.faces is None:
            error = f"{photo.image}: no landmarks beside it, so there is nothing to measure by"
        if error and skip is None:
            raise FaceSetError(error)
        if error and skip is not None:
            skip(FaceSetError(error))
        else:
            yield from photo.faces or ()


def photo_units(photos: Iterable[DatasetPhoto], size: int = UNIT_FACES) -> Iterator[Unit]:
    """Divide photographs that are known already into units of `size`."""
    remaining = iter(photos)
    while part := tuple(islice(remaining, size)):
        yield Unit(len(part), partial(iter, part))


def photos_of_faces(faces: Iterable[Face]) -> Iterator[DatasetPhoto]:
    """Give each face its photograph."""
    return (DatasetPhoto(face.image, face.group, (face,)) for face in faces)


RowReader = Callable[[Iterable[str], int, int], Iterator[Face]]
"""Reads faces from lines, given the number of the first line and the number of rows. Picklable."""


def text_units(path: Path, lines: TextLines, rows: Iterable[object], read: RowReader, size: int) -> Iterator[Unit]:
    """Divide the rest of a text file into units of `size` rows, which hold the byte offset of their first line.

    `rows` are what `lines` are split into: themselves, or rows of a CSV, of which one may span several lines.
    """
    remaining = iter(rows)
    while True:
        start, line = lines.offset, lines.number + 1
        count = sum(1 for _ in islice(remaining, size))
        if not count:
            return
        yield Unit(count, partial(_text_photos, path, start, line, count, read))


def _text_photos(path: Path, start: int, line: int, count: int, read: RowReader) -> Iterator[DatasetPhoto]:
    with path.open("rb") as file:
        file.seek(start)
        yield from photos_of_faces(read(TextLines(path, file), line, count))
