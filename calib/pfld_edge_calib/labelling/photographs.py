"""Which photographs a labelling run looks at, and where their faces are said to be."""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.boxes_csv import read_boxes_csv
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.photo import photos_in
from pfld_edge_calib.points_csv import read_points_csv

__all__ = ["LabelTask", "boxes_by_photo", "label_tasks", "photos_of", "relative_name"]

Boxes = dict[Path, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class LabelTask:
    """A photograph to label.

    Attributes:
        photo: Its path.
        name: What the labels' CSV calls it.
        boxes: ``(N, 4)`` of its faces; None where they are to be found.
        encoded: Its file, where it came out of a shard; None where `photo` is to be read.
    """

    photo: Path
    name: str
    boxes: NDArray[np.float64] | None = None
    encoded: bytes | None = None


def photos_of(inputs: Sequence[Path], images: Path | None = None) -> list[Path]:
    """List photographs, each once, in the order in which they are given.

    Args:
        inputs: Photographs; folders, searched through and sorted; text files with a path a line.
        images: Folder that a text file's paths are relative to; the text file's own where None.

    Raises:
        FaceSetError: A folder or a text file is missing, or names no photograph that is there.
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


def boxes_by_photo(path: Path, images: Path | None = None) -> Boxes:
    """Read where faces are.

    Args:
        path: A CSV of boxes (``image,x0,y0,x1,y1``), or of more points, whose tight box is taken.
        images: Folder that its names are relative to; the CSV's own where None.

    Returns:
        ``(N, 4)`` float64 for each photograph, in the file's order.

    Raises:
        FaceSetError: The file can't be read.
    """
    faces = read_points_csv(path, images) if "x2" in _columns(path) else read_boxes_csv(path, images)
    boxes: dict[Path, list[NDArray[np.float64]]] = {}
    for face in faces:
        boxes.setdefault(face.image, []).append(face.bbox_xyxy)
    return {photo: np.stack(of_photo) for photo, of_photo in boxes.items()}


def label_tasks(photos: Sequence[Path], boxes: Boxes | None, root: Path) -> list[LabelTask]:
    """Bring photographs and boxes together.

    Args:
        photos: None at all for every photograph that has a box.
        boxes: None where faces are to be found.
        root: Folder that names in the labels' CSV are relative to.

    Raises:
        FaceSetError: None of the photographs has a box.
    """
    if boxes is None:
        return [LabelTask(photo, relative_name(photo, root)) for photo in photos]
    known = {_place(photo): of_photo for photo, of_photo in boxes.items()}
    chosen = [photo for photo in photos or boxes if _place(photo) in known]
    if not chosen:
        example = next(iter(boxes))
        raise FaceSetError(f"none of the {len(photos)} photographs has a box; the first box is of {example}")
    return [LabelTask(photo, relative_name(photo, root), known[_place(photo)]) for photo in chosen]


def relative_name(photo: Path, root: Path) -> str:
    """Name a photograph as seen from a folder, with forward slashes; in full where it lies on another drive."""
    place = _place(photo)
    try:
        return Path(os.path.relpath(place, root.resolve())).as_posix()
    except ValueError:  # another drive
        return place.as_posix()


def _place(photo: Path) -> Path:
    """Resolve a photograph's folder, since ".." leads out of the folder behind a link; its own name stays."""
    return photo.parent.resolve() / photo.name


def _listed(path: Path, root: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise FaceSetError(f"{path}: no such list of photographs") from error
    except UnicodeDecodeError as error:
        raise FaceSetError(f"{path}: not a text file of paths ({error})") from error
    photos = [root / line.strip() for line in lines if line.strip()]
    if not photos:
        raise FaceSetError(f"{path}: no photographs in it; write a path a line")
    # One that is missing is skipped later, and named; all of them are a list that is relative to another folder.
    if not any(photo.is_file() for photo in photos):
        raise FaceSetError(f"{path}: {photos[0]} is missing, and so are the others; paths are relative to {root}")
    return photos


def _columns(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except FileNotFoundError as error:
        raise FaceSetError(f"{path}: no such CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FaceSetError(f"{path}: not a CSV file ({error})") from error
