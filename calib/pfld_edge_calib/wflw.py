"""Reads WFLW in its official folder layout (Wu et al., "Look at Boundary", CVPR 2018)."""

from pathlib import Path

import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face, tight_box

__all__ = ["WFLW_ATTRIBUTES", "read_wflw", "read_wflw_list", "wflw_face", "wflw_list"]

WFLW_ATTRIBUTES = ("largepose", "expression", "illumination", "makeup", "occlusion", "blur")
"""The six attribute columns' names in file order; the official file calls the first "pose"."""

_COLUMNS = 98 * 2 + 4 + 6 + 1
_LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{split}.txt"


def wflw_list(folder: Path, split: str) -> Path:
    """Path of the official list of one split, ``train`` or ``test``."""
    return folder / _LISTS.format(split=split)


def read_wflw(folder: Path, split: str = "test") -> list[Face]:
    """Read one split of a WFLW folder.

    Args:
        folder: Holds ``WFLW_images`` and ``WFLW_annotations``.
        split: ``train`` or ``test``.

    Raises:
        FaceSetError: The folder lacks a part, or a line is damaged.
    """
    images = folder / "WFLW_images"
    if not images.is_dir():
        raise FaceSetError(f"{folder}: not a WFLW folder (WFLW_images is missing)")
    return read_wflw_list(wflw_list(folder, split), images)


def read_wflw_list(path: Path, images: Path) -> list[Face]:
    """Read a 207-column list: 98 x,y pairs, the rectangle, six attributes, the image's name.

    The face's box is the tight box of its landmarks, as in the published evaluation, not the rectangle column.

    Raises:
        FaceSetError: The file is missing, or a line is damaged.
    """
    if not path.is_file():
        raise FaceSetError(f"{path}: no such WFLW list")
    lines = path.read_text(encoding="utf-8").splitlines()
    faces = [wflw_face(line, images, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not faces:
        raise FaceSetError(f"{path}: the list is empty")
    return faces


def wflw_face(line: str, images: Path, where: str) -> Face:
    """Read a line of a list.

    Args:
        line: 207 columns, see `read_wflw_list`.
        images: ``WFLW_images``.
        where: For messages.

    Raises:
        FaceSetError: It is damaged.
    """
    columns = line.split()
    if len(columns) != _COLUMNS:
        raise FaceSetError(f"{where}: expected {_COLUMNS} columns, found {len(columns)}")
    try:
        landmarks = np.array(columns[:196], np.float32).reshape(98, 2)
        flags = [int(value) for value in columns[200:206]]
    except ValueError as error:
        raise FaceSetError(f"{where}: {error}") from error
    if not np.isfinite(landmarks).all():
        raise FaceSetError(f"{where}: a landmark is not a finite number")
    attributes = frozenset(name for name, flag in zip(WFLW_ATTRIBUTES, flags, strict=True) if flag)
    return Face(images / columns[206], tight_box(landmarks), landmarks, attributes, group=columns[206])
