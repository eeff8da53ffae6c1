"""The photographs of a labelling run, with their boxes, and their division into units."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.datasets.points_csv import csv_header, read_boxes_csv, read_points_csv
from pfld_edge_calib.datasets.units import DatasetPhoto, Unit
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.photo import listed_paths, photos_in

LABEL_UNIT = 32
"""Photographs in a unit, which a kill costs at most."""

Boxes = dict[Path, NDArray[np.float64]]


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
    """Read the ``(N, 4)`` boxes of each photograph's faces.

    Args:
        path: A CSV of boxes (``image,x0,y0,x1,y1``), or of landmarks, whose tight box is taken.
        images: Folder that its names are relative to; the CSV's own where None.

    Raises:
        FaceSetError: The file can't be read.
    """
    faces = read_points_csv(path, images) if "x2" in csv_header(path) else read_boxes_csv(path, images)
    boxes: dict[Path, list[NDArray[np.float64]]] = {}
    for face in faces:
        boxes.setdefault(face.image, []).append(face.bbox_xyxy)
    return {photo: np.stack(of_photo) for photo, of_photo in boxes.items()}


def label_tasks(photos: Sequence[Path], boxes: Boxes | None, root: Path) -> list[DatasetPhoto]:
    """Assign boxes to photographs; those without boxes are left out, unless `boxes` is None: faces are to be found.

    Args:
        photos: Empty for every photograph that has a box.
        boxes: From `boxes_by_photo`.
        root: Folder that names in the CSV of labels are relative to.

    Raises:
        FaceSetError: None of the photographs has a box.
    """
    if boxes is None:
        return [DatasetPhoto(photo, _relative_name(photo, root)) for photo in photos]
    known = {_resolved(photo): of_photo for photo, of_photo in boxes.items()}
    chosen = [photo for photo in photos or boxes if _resolved(photo) in known]
    if not chosen:
        example = next(iter(boxes))
        raise FaceSetError(f"none of the {len(photos)} photographs has a box; the first box is of {example}")
    return [
        DatasetPhoto(photo, _relative_name(photo, root), tuple(Face(photo, box) for box in known[_resolved(photo)]))
        for photo in chosen
    ]


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


def tasks_identity(tasks: Sequence[DatasetPhoto]) -> str:
    """Hash the names and boxes of photographs."""
    photos = hashlib.sha256()
    for task in tasks:
        photos.update(task.name.encode(errors="surrogateescape") + b"\n")
        for face in task.faces or ():
            photos.update(face.bbox_xyxy.tobytes())
    return photos.hexdigest()


def task_units(tasks: Sequence[DatasetPhoto], size: int = LABEL_UNIT) -> list[Unit]:
    """Divide photographs that are files into units of `size`."""
    parts = [tuple(tasks[start : start + size]) for start in range(0, len(tasks), size)]
    return [Unit(len(part), partial(iter, part)) for part in parts]
