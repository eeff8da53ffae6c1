"""Reads photographs: single files, folders, text lists, and members of tar and Parquet shards."""

import re
import tarfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face

__all__ = ["PHOTO_SUFFIXES", "decode_photo", "face_photo", "listed_paths", "photos_in", "photos_listed", "read_photo"]

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def read_photo(path: Path) -> NDArray[np.uint8]:
    """Read a photograph as ``(H, W, 3)`` uint8 BGR, rotated by its EXIF orientation.

    Args:
        path: The file; for a member of a shard ``shard.tar/key.jpg`` or ``shard.parquet/row-7``, which searches the
            shard.

    Raises:
        FaceSetError: The file is missing or not an image.
    """
    encoded = np.fromfile(path, np.uint8) if path.is_file() else _shard_member(path)
    if encoded is None:
        raise FaceSetError(f"{path}: no such photograph")
    return decode_photo(encoded, path)


def face_photo(face: Face) -> NDArray[np.uint8]:
    """Read the photograph of a face, ``(H, W, 3)`` uint8 BGR.

    Raises:
        FaceSetError: It is missing, or not an image.
    """
    return read_photo(face.image) if face.encoded is None else decode_photo(face.encoded, face.image)


def decode_photo(encoded: bytes | NDArray[np.uint8], name: Path) -> NDArray[np.uint8]:
    """Decode an image file to ``(H, W, 3)`` uint8 BGR, rotated by its EXIF orientation.

    Args:
        encoded: Contents of the file.
        name: Named in error messages.

    Raises:
        FaceSetError: The contents are not an image.
    """
    data = np.frombuffer(encoded, np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    except cv2.error as error:
        # OpenCV refuses images of more than 2^30 pixels.
        raise FaceSetError(f"{name}: an image that can't be unpacked ({error.err or error})") from error
    if image is None:
        raise FaceSetError(f"{name}: not an image that can be read (JPEG, PNG, BMP or WebP expected)")
    return np.asarray(image, np.uint8)


def photos_in(folder: Path) -> list[Path]:
    """List the photographs under a folder recursively, sorted by path.

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
    """Read a text file with one path a line; every photograph must exist.

    Args:
        path: The text file.
        folder: Folder that the paths are relative to; the text file's own where None.

    Raises:
        FaceSetError: A photograph is missing, or the file lists none.
    """
    photos = listed_paths(path, folder)
    missing = next((photo for photo in photos if not photo.is_file()), None)
    if missing is not None:
        raise FaceSetError(f"{path}: {missing} is missing; paths are relative to {folder or path.parent}")
    return photos


def listed_paths(path: Path, folder: Path | None = None) -> list[Path]:
    """Read a text file with one path a line, whether the photographs exist or not; see `photos_listed`.

    Raises:
        FaceSetError: The file is missing, is not text, or lists nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise FaceSetError(f"{path}: no such list of photographs") from error
    except UnicodeDecodeError as error:
        raise FaceSetError(f"{path}: not a text file of paths ({error})") from error
    photos = [(folder or path.parent) / line.strip() for line in lines if line.strip()]
    if not photos:
        raise FaceSetError(f"{path}: no photographs in it; write a path a line")
    return photos


def _shard_member(path: Path) -> bytes | None:
    """Search a shard for the photograph of this path; None where there is no such shard or member."""
    shard = next((parent for parent in path.parents if parent.is_file()), None)
    if shard is None:
        return None
    name = path.relative_to(shard).as_posix()
    if shard.suffix.lower() == ".tar":
        return _tar_member(shard, name)
    return _parquet_image(shard, name) if shard.suffix.lower() == ".parquet" else None


def _tar_member(shard: Path, name: str) -> bytes | None:
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.name == name and (opened := tar.extractfile(member)) is not None:
                    return opened.read()
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every member in memory
    except tarfile.TarError:
        return None
    return None


def _parquet_image(shard: Path, name: str) -> bytes | None:
    from pyarrow.parquet import ParquetFile

    numbered = re.fullmatch(r"row-(\d+)", name)
    row = 0
    with ParquetFile(shard, buffer_size=1 << 20, pre_buffer=False) as file:
        for batch in file.iter_batches(16, columns=["image"]):
            for image in batch.column(0).to_pylist():
                named = isinstance(image, dict) and image.get("path") == name
                if named or (numbered is not None and row == int(numbered[1])):
                    found = image["bytes"] if isinstance(image, dict) else image
                    return found if isinstance(found, bytes) else None
                row += 1
    return None
