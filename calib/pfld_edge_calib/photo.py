"""Reads photographs."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.packed_photo import packed_photo

__all__ = ["PHOTO_SUFFIXES", "decode_photo", "photos_in", "photos_listed", "read_photo"]

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def read_photo(path: Path) -> NDArray[np.uint8]:
    """Read a photograph as ``(H, W, 3)`` uint8 BGR, turned as its EXIF orientation says.

    Args:
        path: The file; in a shard the shard's path and the photograph's name in it, which takes a search.

    Raises:
        FaceSetError: The file is missing or not an image.
    """
    if not path.is_file():
        packed = packed_photo(path)
        if packed is None:
            raise FaceSetError(f"{path}: no such photograph")
        return decode_photo(packed, path)
    return decode_photo(np.fromfile(path, np.uint8), path)


def decode_photo(encoded: bytes | NDArray[np.uint8], name: Path) -> NDArray[np.uint8]:
    """Decode a photograph's file to ``(H, W, 3)`` uint8 BGR, turned as its EXIF orientation says.

    Args:
        encoded: The file's contents.
        name: For messages.

    Raises:
        FaceSetError: They are no image.
    """
    data = np.frombuffer(encoded, np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    except cv2.error as error:
        # OpenCV refuses what unpacks to more than 2^30 pixels.
        raise FaceSetError(f"{name}: an image that can't be unpacked ({error.err or error})") from error
    if image is None:
        raise FaceSetError(f"{name}: not an image that can be read (JPEG, PNG, BMP or WebP expected)")
    return np.asarray(image, np.uint8)


def photos_in(folder: Path) -> list[Path]:
    """List the photographs under a folder, sorted, so that runs repeat.

    Raises:
        FaceSetError: The folder is missing, or holds none.
    """
    if not folder.is_dir():
        raise FaceSetError(f"{folder}: no such folder")
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        raise FaceSetError(f"{folder}: no photographs found ({', '.join(sorted(PHOTO_SUFFIXES))})")
    return photos


def photos_listed(path: Path, folder: Path | None = None) -> list[Path]:
    """Read a text file of photographs, a path a line, relative to the given folder or else to the file's.

    Raises:
        FaceSetError: A photograph is missing, or there is none.
    """
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise FaceSetError(f"{path}: no photographs in it; write a path a line")
    root = path.parent if folder is None else folder
    photos = [root / name for name in names]
    missing = [photo for photo in photos if not photo.is_file()]
    if missing:
        raise FaceSetError(f"{path}: {missing[0]} is missing; paths are relative to {root}")
    return photos
