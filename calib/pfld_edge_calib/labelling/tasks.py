"""The photographs of a labelling run, with their boxes, and their division into units."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.datasets.points_csv import csv_header, read_boxes_csv, read_points_csv
from pfld_edge_calib.datasets.units import Unit
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.photo import listed_paths, photos_in

LABEL_UNIT = 32
"""Photographs in a unit, which a kill costs at most."""

Boxes = dict[Path, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class LabelTask:
    """A photograph to label.

    Attributes:
        photo: Its path.
        name: Its name in the CSV of labels.
        boxes: ``(N, 4)`` of its faces; None where they are to be found.
        encoded: The encoded photograph, where it was read from a shard; None where `photo` is to be read.
    """

    photo: Path
    name: str
    boxes: NDArray[np.float64] | None = None
    encoded: bytes | None = None


def photos_of(inputs: Sequence[Path], images: Path | None = None) -> list[Path]:
    """List photographs, each once, in the order in which they are given.

    Args:
        inputs: Photographs; folders, searched recursively; text files with one path a line.
        images: Folder that a text file's paths are relative to; the text file's own where None.

    Raises:
        FaceSetError: A folder or a text file is missing, or lists no photograph that exists.
    """
    found: dict[Path, None] = {}
    for path in inputs:
        photos: Iterable[Path] = [path]
        if path.suffix.lower() == ".txt":
            photos = _listed(path, path.parent if images is None else images)
        elif path.is_dir():
            photos = photos_in(path)
        found.update(dict.fromkeys(photos))
    return list(found)


def _listed(path: Path, root: Path) -> list[Path]:
    photos = listed_paths(path, root)
    # A missing photograph is skipped and named later; where all are missing, the list is relative to another folder.
    if not any(photo.is_file() for photo in photos):
        raise FaceSetError(f"{path}: {photos[0]} is missing, and so are the others; paths are relative to {root}")
    return photos


def boxes_by_photo(path: Path, images: Path | None = None) -> Boxes:
    """Read the boxes of faces.

    Args:
        path: A CSV of boxes (``image,x0,y0,x1,y1``), or of landmarks, whose tight box is taken.
        images: Folder that its names are relative to; the CSV's own where None.

    Returns:
        ``(N, 4)`` float64 for each photograph, in the file's order.

    Raises:
        FaceSetError: The file can't be read.
    """
    faces = read_points_csv(path, images) if "x2" in csv_header(path) else read_boxes_csv(path, images)
    boxes: dict[Path, list[NDArray[np.float64]]] = {}
    for face in faces:
        boxes.setdefault(face.image, []).append(face.bbox_xyxy)
    return {photo: np.stack(of_photo) for photo, of_photo in boxes.items()}


def label_tasks(photos: Sequence[Path], boxes: Boxes | None, root: Path) -> list[LabelTask]:
    """Assign boxes to photographs; photographs without boxes are left out.

    Args:
        photos: Empty for every photograph that has a box.
        boxes: None where faces are to be found.
        root: Folder that names in the CSV of labels are relative to.

    Raises:
        FaceSetError: None of the photographs has a box.
    """
    if boxes is None:
        return [LabelTask(photo, _relative_name(photo, root)) for photo in photos]
    known = {_resolved(photo): of_photo for photo, of_photo in boxes.items()}
    chosen = [photo for photo in photos or boxes if _resolved(photo) in known]
    if not chosen:
        example = next(iter(boxes))
        raise FaceSetError(f"none of the {len(photos)} photographs has a box; the first box is of {example}")
    return [LabelTask(photo, _relative_name(photo, root), known[_resolved(photo)]) for photo in chosen]


def _relative_name(photo: Path, root: Path) -> str:
    """Path of a photograph relative to a folder, with forward slashes; absolute where it lies on another drive."""
    place = _resolved(photo)
    try:
        return Path(os.path.relpath(place, root.resolve())).as_posix()
    except ValueError:  # another drive
        return place.as_posix()


def _resolved(photo: Path) -> Path:
    """Resolve a photograph's folder, where ".." behind a link leads elsewhere; the photograph's own name stays."""
    return photo.parent.resolve() / photo.name


def tasks_identity(tasks: Sequence[LabelTask]) -> str:
    """Hash the names and boxes of photographs."""
    photos = hashlib.sha256()
    for task in tasks:
        photos.update(task.name.encode(errors="surrogateescape") + b"\n")
        photos.update(b"" if task.boxes is None else task.boxes.tobytes())
    return photos.hexdigest()


@dataclass(frozen=True, slots=True)
class ShardUnit:
    """Photographs of a shard.

    Attributes:
        unit: The unit of the shard.
        boxed: Whether boxes are taken from the shard's annotation; otherwise faces are to be found.
    """

    unit: Unit
    boxed: bool

    def __len__(self) -> int:
        """Number of photographs."""
        return self.unit.count

    def __iter__(self) -> Iterator[LabelTask]:
        """Read the photographs in order."""
        for photo in self.unit.photos():
            boxes = None
            if self.boxed:
                if photo.faces is None:
                    raise FaceSetError(f"{photo.image}: no box beside it; give a detector")
                boxes = np.array([face.bbox_xyxy for face in photo.faces]).reshape(-1, 4)
            yield LabelTask(photo.image, photo.name, boxes, photo.encoded)


LabelUnit = tuple[LabelTask, ...] | ShardUnit
"""Photographs that are files, or those of a shard's unit: iterable, and of known length."""


def task_units(tasks: Sequence[LabelTask], size: int = LABEL_UNIT) -> list[LabelUnit]:
    """Divide photographs that are files into units of `size`."""
    return [tuple(tasks[start : start + size]) for start in range(0, len(tasks), size)]
