"""Where results go: files that are written whole or not at all."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge.errors import OutputError

__all__ = ["picture_paths", "write_atomically", "write_picture"]

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it, so that a killed run never leaves half of one.

    Args:
        path: The file; missing folders are made, an existing file is replaced.
        data: Its contents.

    Raises:
        OSError: The folder can't be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write ``(H, W, 3)`` uint8 BGR as PNG or JPEG, by the file's suffix, atomically.

    Raises:
        OutputError: The picture is too large for the format (a JPEG side over 65,535 pixels).
        OSError: The folder can't be made or written to.
    """
    try:
        done, data = cv2.imencode(path.suffix.lower(), picture)
    except cv2.error:
        done = False
    if not done:
        raise OutputError(
            f"{path}: a picture of {picture.shape[1]} x {picture.shape[0]} can't be written as {path.suffix}"
        )
    write_atomically(path, data.tobytes())


def picture_paths(photos: Sequence[Path], out: Path) -> list[Path]:
    """Say where the picture made from each photograph goes.

    Args:
        photos: The photographs.
        out: A ``.png``, ``.jpg`` or ``.jpeg`` file where there is one photograph, otherwise a folder.

    Returns:
        One path a photograph: `out` itself, or ``<out>/<photograph>-landmarks.png``.

    Raises:
        OutputError: Several photographs and one file, two photographs of one name, an existing file as the folder, or
            a photograph that would be overwritten.
    """
    if out.suffix.lower() in _PICTURE_SUFFIXES and not out.is_dir():
        if len(photos) > 1:
            raise OutputError(f"{out} is one file, and there are {len(photos)} photographs: give a folder")
        if out.exists() and photos[0].exists() and out.samefile(photos[0]):
            raise OutputError(f"{out} is the photograph itself: give another file, or a folder")
        return [out]
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is neither a folder nor a .png or .jpg file")
    paths = [out / f"{photo.stem}-landmarks.png" for photo in photos]
    path, uses = Counter(paths).most_common(1)[0]
    if uses > 1:
        raise OutputError(
            f"{uses} photographs would be drawn to {path}: give them different names, or separate folders"
        )
    return paths
