"""What dataset readers yield: annotated faces, photographs with their faces, and work units of them.

A unit is a part of a dataset of any size that one process reads, a photograph at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.files import TextLines
from pfld_edge_runtime import tight_box
from pfld_edge_runtime.arrays import Float32Array, Float64Array
from pfld_edge_runtime.crop import LARGEST_COORDINATE


@dataclass(frozen=True, slots=True)
class Face:
    """A face in a photograph.

    Attributes:
        image: Path of the photograph.
        bbox_xyxy: ``(4,)`` float64 x0, y0, x1, y1 in pixels, right and bottom edges exclusive.
        landmarks: ``(P, 2)`` float32 in photograph pixels; None where unknown.
        attributes: Names of the dataset's attributes that hold, e.g. ``{"largepose", "blur"}`` for WFLW.
        weight: Confidence in the landmarks, 0 to 1; 1 for manual annotations.
        point_weights: ``(P,)`` float32 confidence in each landmark, 0 to 1, multiplied by `weight`; None where all
            are 1. A landmark of weight 0 is unlabelled: readers place it at the mean of the others.
        group: Faces of one person or one photograph share it; a split never separates a group.
        encoded: The encoded photograph, where it was read from a shard; None where `image` is to be read.
    """

    image: Path
    bbox_xyxy: Float64Array
    landmarks: Float32Array | None = None
    attributes: frozenset[str] = field(default_factory=frozenset)
    weight: float = 1.0
    point_weights: Float32Array | None = None
    group: str = ""
    encoded: bytes | None = field(default=None, repr=False)


def labelled_face(
    image: Path,
    landmarks: NDArray[np.floating],
    where: str,
    *,
    attributes: frozenset[str] = frozenset(),
    weight: float = 1.0,
    point_weights: NDArray[np.floating] | None = None,
    group: str = "",
) -> Face:
    """Check what a file says of a face, and make a `Face` of it; `where` names the line or file in error messages.

    Its box is the tight box of the labelled landmarks, or of all where none is labelled. FaceSetError where one of
    these isn't finite or lies beyond 1e9 pixels, a weight lies outside of 0..1, there isn't one weight a landmark, or
    all labelled landmarks lie in 0..1: they are fractions of the photograph, not pixels.
    """
    weights = np.ones(len(landmarks)) if point_weights is None else point_weights
    if weights.shape != landmarks.shape[:1]:
        raise FaceSetError(f"{where}: {len(landmarks)} landmarks need as many point_weights, found {weights.size}")
    usable = (np.abs(landmarks) < LARGEST_COORDINATE).all(axis=1)
    if not usable[weights > 0].all():
        raise FaceSetError(
            f"{where}: landmarks must be finite and below 1e9 pixels; one that is unlabelled has the weight 0 (c0, c1, "
            "... of a CSV), or without weights is -1,-1"
        )
    if not 0 <= weight <= 1 or not ((weights >= 0) & (weights <= 1)).all():
        raise FaceSetError(f"{where}: trust must be from 0 to 1")
    # Not before the check: float64 may hold what float32 can't.
    landmarks = np.where(usable[:, None], landmarks, 0).astype(np.float32)
    known = landmarks[weights > 0]
    if len(known) > 1 and (known >= 0).all() and (known <= 1).all():
        raise FaceSetError(
            f"{where}: all points lie in 0..1, but pixels are expected: multiply x by the photograph's width and y by "
            "its height"
        )
    box = tight_box(known if len(known) else landmarks)
    if len(known):
        landmarks = np.where(weights[:, None] > 0, landmarks, known.mean(axis=0)).astype(np.float32)
    each = None if point_weights is None else point_weights.astype(np.float32)
    return Face(image, box, landmarks, attributes, weight, each, group)


def without_unlabelled(landmarks: Float64Array) -> tuple[Float64Array, Float64Array | None]:
    """Find the unlabelled points of a face whose file gives no confidences: those at -1, -1, and those without numbers.

    So annotation tools and data frames write them. Gives the ``(P, 2)`` landmarks, NaN where unlabelled, and their
    ``(P,)`` weights, None where all are labelled.
    """
    landmarks = np.where((landmarks == -1).all(axis=1, keepdims=True), np.nan, landmarks)
    labelled = ~np.isnan(landmarks).all(axis=1)
    return landmarks, None if labelled.all() else np.asarray(labelled, np.float64)


UNIT_FACES = 256
"""Lines or photographs in a unit: tenths of a second of work, and a multiple of the models' batch size."""

Skip = Callable[[FaceSetError], object]
"""Takes the error of a file that can't be used, so that the others can; what it raises ends the run."""


def refuse(error: FaceSetError) -> None:
    """A `Skip` that takes no error: it raises each."""
    raise error


@contextmanager
def skipping(skip: Skip) -> Iterator[None]:
    """Give the FaceSetError that ends the block to `skip`."""
    try:
        yield
    except FaceSetError as error:
        skip(error)


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


def unit_faces(unit: Unit, skip: Skip = refuse) -> Iterator[Face]:
    """Read the annotated faces of a unit in order; a damaged line of a list is a FaceSetError.

    So is a photograph of a shard that is damaged or has no annotation, unless `skip` takes the error.
    """
    for photo in unit.photos():
        error = photo.error
        if not error and photo.faces is None:
            error = f"{photo.image}: no landmarks beside it, so there is nothing to measure by"
        if error:
            with skipping(skip):
                raise FaceSetError(error)
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
