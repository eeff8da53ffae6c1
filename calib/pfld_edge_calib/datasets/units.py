"""Work units: parts of a dataset of any size that one process reads, a photograph at a time.

A unit is small and picklable: it says where its photographs are. Units of a text file (`TextUnit`) hold the byte offset
of their first line; those of shards are in `pfld_edge_calib.datasets.shards`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.files import TextLines

UNIT_FACES = 256
"""Lines or photographs in a unit: tenths of a second of work, and a multiple of the models' batch size."""


@dataclass(frozen=True, slots=True)
class DatasetPhoto:
    """A photograph of a dataset with its annotated faces.

    Attributes:
        image: Path of the photograph; in a shard the shard's path joined with the member's name.
        name: Identifies the photograph wherever the dataset lies.
        faces: None where the dataset has no annotation; without landmarks where it has boxes only.
        encoded: The encoded photograph; None where `image` is to be read.
    """

    image: Path
    name: str
    faces: tuple[Face, ...] | None = None
    encoded: bytes | None = None


class Unit(Protocol):
    """A part of a dataset that one process works on."""

    @property
    def count(self) -> int:
        """Number of photographs, or of lines of a list of faces."""

    def photos(self) -> Iterator[DatasetPhoto]:
        """Read the photographs in order.

        Raises:
            FaceSetError: One is damaged.
        """


def unit_faces(unit: Unit) -> Iterator[Face]:
    """Read the annotated faces of a unit in order.

    Raises:
        FaceSetError: A photograph is damaged or has no annotation.
    """
    for photo in unit.photos():
        if photo.faces is None:
            raise FaceSetError(f"{photo.image}: no landmarks beside it, so there is nothing to measure by")
        yield from photo.faces


@dataclass(frozen=True, slots=True)
class FaceUnit:
    """Faces that were read already.

    Attributes:
        faces: The faces.
    """

    faces: tuple[Face, ...]

    @property
    def count(self) -> int:
        """Number of faces."""
        return len(self.faces)

    def photos(self) -> Iterator[DatasetPhoto]:
        """Yield each face with its photograph."""
        return (DatasetPhoto(face.image, face.group, (face,)) for face in self.faces)


@dataclass(frozen=True, slots=True)
class TextUnit:
    """Consecutive lines of a text file with one face a line.

    Attributes:
        path: The file.
        start: Byte offset of the first line.
        line: Number of that line, from 1.
        count: Number of faces, or of lines.
        read: Reads faces from the lines from there on; also gets `line` and `count`. Picklable.
    """

    path: Path
    start: int
    line: int
    count: int
    read: Callable[[Iterable[str], int, int], Iterator[Face]]

    def photos(self) -> Iterator[DatasetPhoto]:
        """Read the faces in order."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            for face in self.read(TextLines(self.path, file), self.line, self.count):
                yield DatasetPhoto(face.image, face.group, (face,))


def face_units(faces: Iterable[Face], size: int = UNIT_FACES) -> Iterator[FaceUnit]:
    """Divide faces that were read already into units."""
    remaining = iter(faces)
    while part := tuple(islice(remaining, size)):
        yield FaceUnit(part)
