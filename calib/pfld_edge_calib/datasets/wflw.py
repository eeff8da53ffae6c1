"""WFLW (Wu et al., "Look at Boundary", CVPR 2018): its folder layout and its lists.

A part that is missing or damaged is a FaceSetError.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import UNIT_FACES, Face, Unit, labelled_face, text_units, unit_faces
from pfld_edge_calib.files import TextLines, named_file

WFLW_ATTRIBUTES = ("largepose", "expression", "illumination", "makeup", "occlusion", "blur")
"""Names of the six attribute columns in file order; the official file calls the first "pose"."""

_COLUMNS = 98 * 2 + 4 + 6 + 1
_LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{split}.txt"


def wflw_list(folder: Path, split: str) -> Path:
    """Path of the official list of one split, ``train`` or ``test``."""
    return folder / _LISTS.format(split=split)


def read_wflw(folder: Path, split: str = "test") -> list[Face]:
    """Read one split, ``train`` or ``test``, of a folder that holds ``WFLW_images`` and ``WFLW_annotations``."""
    faces = [face for unit in wflw_units(folder, split) for face in unit_faces(unit)]
    if not faces:
        raise FaceSetError(f"{wflw_list(folder, split)}: the list is empty")
    return faces


def wflw_units(folder: Path, split: str, size: int = UNIT_FACES) -> Iterator[Unit]:
    """Divide one split of a WFLW folder into units of at most `size` lines.

    A line has 207 columns: 98 x,y pairs, the rectangle, six attributes, the image's name. The face's box is the tight
    box of its landmarks, as in the published evaluation, not the rectangle.
    """
    path, images = wflw_list(folder, split), folder / "WFLW_images"
    if not path.is_file():
        raise FaceSetError(f"{path}: no such WFLW list, the official one of the {split} split")
    if not images.is_dir():
        raise FaceSetError(f"{folder}: not a WFLW folder (WFLW_images is missing)")
    with path.open("rb") as file:
        lines = TextLines(path, file)
        yield from text_units(path, lines, lines, partial(_read_lines, path=path, images=images), size)


def _read_lines(lines: Iterable[str], first: int, count: int, *, path: Path, images: Path) -> Iterator[Face]:
    for number, line in enumerate(islice(lines, count), first):
        if line.strip():
            yield _face(line, images, f"{path}, line {number}")


def _face(line: str, images: Path, where: str) -> Face:
    columns = line.split()
    if len(columns) != _COLUMNS:
        raise FaceSetError(f"{where}: expected {_COLUMNS} columns, found {len(columns)}")
    try:
        landmarks = np.array(columns[:196], np.float64).reshape(98, 2)
        rectangle = np.array(columns[196:200], np.float64)
        flags = [int(float(value)) for value in columns[200:206]]
    except (ValueError, OverflowError) as error:
        raise FaceSetError(f"{where}: {error}") from error
    attributes = frozenset(name for name, flag in zip(WFLW_ATTRIBUTES, flags, strict=True) if flag)
    name = columns[206]
    face = labelled_face(named_file(images, name), landmarks, where, attributes=attributes, group=name)
    if (np.maximum(face.bbox_xyxy[:2], rectangle[:2]) > np.minimum(face.bbox_xyxy[2:], rectangle[2:])).any():
        raise FaceSetError(f"{where}: the rectangle and the landmarks don't overlap; do they belong to one photograph?")
    return face
