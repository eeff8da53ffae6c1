"""Photographs: single files, folders, text lists, members of shards; and the faces that they don't show.

A file or folder that is missing, can't be read, is no image, or lists nothing is a FaceSetError.
"""

import io
import os
import threading
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import DatasetPhoto, Face, Skip, refuse
from pfld_edge_calib.files import named_file, read_lines
from pfld_edge_runtime.arrays import Uint8Array

_USUAL = frozenset({".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
PHOTO_SUFFIXES = _USUAL | {".dib", ".hif", ".jfif", ".jp2", ".jpe", ".pbm", ".pgm", ".pnm", ".ppm"}
"""Of the formats that `decode_photo` reads."""

_FOR_PEOPLE = "JPEG, PNG, TIFF, AVIF, WebP, GIF, BMP"
_HEIF = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"})
"""Brands of files of the HEIF family, other than AVIF (ISO/IEC 23008-12)."""

opencv_log: Any = getattr(cv2.utils, "logging", cv2)
"""Has getLogLevel and setLogLevel; 0 is silence. OpenCV 4 has them at its top."""

T = TypeVar("T")
_ABSENT = "no such photograph"


def read_photo(path: Path) -> Uint8Array:
    """Read a photograph as ``(H, W, 3)`` uint8 BGR, rotated by its EXIF orientation.

    ``shard.tar/key.jpg`` and ``shard.parquet/row-7`` are members of shards, which are searched for them.
    """
    try:
        encoded = np.fromfile(path, np.uint8) if path.is_file() else _shard_member(path)
    except OSError as error:
        raise FaceSetError(f"{path}: {error.strerror or error}") from error
    if encoded is None:
        raise FaceSetError(f"{path}: {'a folder, not a photograph' if path.is_dir() else _ABSENT}")
    return decode_photo(encoded, path)


def face_photo(face: Face | DatasetPhoto) -> Uint8Array:
    """Read the photograph of a face, or of a dataset, ``(H, W, 3)`` uint8 BGR."""
    return read_photo(face.image) if face.encoded is None else decode_photo(face.encoded, face.image)


def decode_photo(encoded: bytes | Uint8Array, name: Path) -> Uint8Array:
    """Decode an image file to ``(H, W, 3)`` uint8 BGR, rotated by its EXIF orientation; `name` is for error messages.

    OpenCV decodes it; Pillow where OpenCV leaves an image lying on its side (AVIF), or was built without the format.
    Of several images in a file (GIF, TIFF) it is the first. HEIC needs the package pillow-heif.
    """
    data = np.frombuffer(encoded, np.uint8)
    kind = data[4:12].tobytes()
    if kind[:4] == b"ftyp" and kind[4:] in _HEIF | {b"avif", b"avis"}:
        return _decode_with_pillow(data, name, heif=kind[4:] in _HEIF)
    if len(data) == 0:
        raise FaceSetError(f"{name}: not an image that can be read (the file is empty)")
    try:
        with _quiet:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        # OpenCV refuses images of more than 2^30 pixels.
        raise FaceSetError(f"{name}: an image that can't be unpacked ({error.err or error})") from error
    return _decode_with_pillow(data, name) if image is None else np.asarray(image, np.uint8)


class _QuietDecoders:
    """Keeps off standard error what OpenCV, libjpeg and libpng say of a photograph, without its name.

    The latter two write to the process's file descriptor, so that it leads nowhere while any thread decodes.
    """

    def __init__(self) -> None:
        self._lock, self._threads = threading.Lock(), 0
        self._level = 0
        self._kept: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            if self._threads > 1:
                return
            self._level = opencv_log.getLogLevel()
            opencv_log.setLogLevel(0)
            try:
                self._kept = os.dup(2)
            except OSError:  # a process without standard error
                self._kept = None
                return
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads:
                return
            opencv_log.setLogLevel(self._level)
            if self._kept is not None:
                os.dup2(self._kept, 2)
                os.close(self._kept)


_quiet = _QuietDecoders()


def _decode_with_pillow(data: Uint8Array, name: Path, *, heif: bool = False) -> Uint8Array:
    from PIL import Image, ImageOps

    if heif:
        try:
            from pillow_heif import register_heif_opener
        except ImportError as error:
            raise FaceSetError(f"{name}: HEIC is read by a further package: pip install pillow-heif") from error
        register_heif_opener()
    formats = ("HEIF",) if heif else ("AVIF", "GIF", "TIFF")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data.tobytes()), formats=formats) as opened:
                upright = ImageOps.exif_transpose(opened).convert("RGB")
    except Image.DecompressionBombError as error:
        raise FaceSetError(f"{name}: an image that can't be unpacked ({error})") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise FaceSetError(
            f"{name}: not an image that can be read, or a damaged one ({_FOR_PEOPLE} expected)"
        ) from error
    return np.ascontiguousarray(np.asarray(upright, np.uint8)[:, :, ::-1])


def photos_in(folder: Path) -> list[Path]:
    """List the photographs under a folder recursively, sorted by path; hidden files (``._a.jpg``) are passed over.

    Links to folders are followed; a folder that several paths lead to is listed once.
    """
    if not folder.is_dir():
        raise FaceSetError(
            f"{folder}: {'a file, not a folder of photographs' if folder.exists() else 'no such folder'}"
        )
    photos = [path for path in _files_in(folder) if path.suffix.lower() in PHOTO_SUFFIXES and not path.is_dir()]
    if not photos:
        raise FaceSetError(f"{folder}: no photographs found ({', '.join(sorted(PHOTO_SUFFIXES))})")
    return photos


def other_files(folder: Path) -> list[Path]:
    """List the files under a folder that `photos_in` leaves out as no photographs; hidden ones aren't listed.

    Folders that can't be read are among them.
    """
    return [path for path in _files_in(folder) if path.suffix.lower() not in PHOTO_SUFFIXES or path.is_dir()]


def _files_in(folder: Path) -> list[Path]:
    """Files under a folder, and folders that can't be read."""
    found: list[Path] = []
    folders, links, seen = [folder], list[Path](), set[tuple[int, int]]()
    # Links come last, so that a folder inside is listed by its own name, whatever leads to it.
    while folders or links:
        here = folders.pop() if folders else links.pop()
        try:
            place = here.stat()
            if (place.st_dev, place.st_ino) in seen:
                continue
            inside = sorted(path for path in here.iterdir() if not path.name.startswith("."))
        except OSError:
            found.append(here)
            continue
        seen.add((place.st_dev, place.st_ino))
        for path in inside:
            if not path.is_dir():
                found.append(path)
            else:
                (links if path.is_symlink() else folders).append(path)
    return sorted(found)


def listed_paths(path: Path, folder: Path | None = None) -> list[Path]:
    """Read a text file with one path a line, relative to `folder`, or to the text file's own where that is None.

    Photographs may be missing, but not all: then the list is relative to another folder.
    """
    try:
        lines = read_lines(path)
    except FileNotFoundError as error:
        raise FaceSetError(f"{path}: no such list of photographs") from error
    root = folder or path.parent
    photos = [named_file(root, line.rstrip("\r\n")) for line in lines if line.strip()]
    if not photos:
        raise FaceSetError(f"{path}: no photographs in it; write a path a line")
    if not any(photo.is_file() for photo in photos):
        others = ", and so are the others" if len(photos) > 1 else ""
        raise FaceSetError(f"{path}: {photos[0]} is missing{others}; paths are relative to {root}")
    return photos


def _shard_member(path: Path) -> bytes | None:
    """Search a shard for the photograph of this path; None where there is no such shard or member."""
    from pfld_edge_calib.datasets.shards import member_of  # which imports this module

    shard = next((parent for parent in path.parents if parent.is_file()), None)
    return None if shard is None else member_of(shard, path.relative_to(shard).as_posix())


class UnusableFaces:
    """The faces of a set that can't be measured, by index: with the reason if `unreadable`, or boxed `outside`."""

    def __init__(self, skip: Skip = refuse) -> None:
        """Begin with none; `skip` takes the error of each photograph that can't be read, which `refuse` raises."""
        self._skip = skip
        self.unreadable: dict[int, str] = {}
        self.outside: set[int] = set()

    def read(self, faces: Sequence[Face], rows: Sequence[int]) -> tuple[Uint8Array | None, list[int]]:
        """Read the photograph that some faces share.

        Gives it, ``(H, W, 3)`` uint8 BGR, and the rows of those faces that it shows; None and none where it can't be
        read and `skip` takes its error.
        """
        try:
            photo = face_photo(faces[rows[0]])
        except FaceSetError as error:
            self.unreadable.update(dict.fromkeys(rows, str(error)))
            self._skip(error)
            return None, []
        self.outside.update(row for row in rows if is_outside(faces[row], photo))
        return photo, [row for row in rows if row not in self.outside]

    def others(self, items: Sequence[T]) -> list[T]:
        """Choose the usable faces, or what is known of them, from a list with one item a face of the set."""
        return [item for row, item in enumerate(items) if row not in self.unreadable and row not in self.outside]


def folder_hint(unreadable: Collection[str], option: str = "--images") -> str:
    """What mends a list of which every photograph is missing: the option that names their folder; else nothing."""
    missing = bool(unreadable) and all(reason.endswith(_ABSENT) for reason in unreadable)
    return f"; {option} names the folder of a list's photographs" if missing else ""


def is_outside(face: Face, photo: Uint8Array) -> bool:
    """Whether a face's box lies wholly outside of its photograph."""
    low, high = face.bbox_xyxy[:2], face.bbox_xyxy[2:]
    # A box without area lies nowhere; cutting it is an error.
    return bool((low < high).all() and ((low >= photo.shape[1::-1]).any() or (high <= 0).any()))
