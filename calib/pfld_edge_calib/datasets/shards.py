"""Shards: WebDataset tar files and Parquet files that hold photographs with their annotations.

Tar: ``key.jpg`` and ``key.json`` with the same key, which is the member's name up to the first dot of its last part;
members of one key are adjacent, as in the WebDataset format (https://github.com/webdataset/webdataset). Nothing is
extracted: a unit holds the byte offset of its first member. Parquet: one photograph a row, its encoded bytes in the
column ``image``, or as ``{"bytes", "path"}`` in Hugging Face's layout.

An annotation has `FACE_FIELDS` of the only face, or ``faces``, a list of such records.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.datasets.units import UNIT_FACES, DatasetPhoto
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import LARGEST_COORDINATE, Face, labelled_landmarks
from pfld_edge_calib.photo import PHOTO_SUFFIXES
from pfld_edge_runtime import MissingPackageError
from pfld_edge_runtime.crop import check_boxes

FACE_FIELDS = ("landmarks", "box", "attributes", "weight", "point_weights")
"""Fields of a face; all are optional, but ``landmarks`` or ``box`` must be there."""

_PARQUET_ROWS = 16
"""Rows read at a time; few, since each holds a photograph."""


def annotated_faces(record: Mapping[str, Any], image: Path, encoded: bytes | None) -> tuple[Face, ...] | None:
    """Read the faces of one photograph from its annotation.

    Args:
        record: ``landmarks`` are P pairs or 2 P numbers in photograph pixels; ``box`` is x0, y0, x1, y1, by default the
            landmarks' tight box; ``attributes`` are names; weights are from 0 to 1. Other fields are ignored.
        image: Path of the photograph.
        encoded: The encoded photograph.

    Returns:
        None where the record has no annotation of faces.

    Raises:
        FaceSetError: A field has another type or range.
    """
    faces = record.get("faces")
    if faces is None:
        if record.get("landmarks") is None and record.get("box") is None:
            return None
        faces = [record]
    if not isinstance(faces, list) or not all(isinstance(face, dict) for face in faces):
        raise FaceSetError(f"{image}: faces must be a list of objects with landmarks or a box")
    return tuple(_face(face, image, encoded) for face in faces)


def _face(record: Mapping[str, Any], image: Path, encoded: bytes | None) -> Face:
    try:
        landmarks = _landmarks(record.get("landmarks"))
        weight = 1.0 if record.get("weight") is None else float(record["weight"])
        trust = None if record.get("point_weights") is None else np.array(record["point_weights"], np.float64)
        attributes = frozenset(str(name) for name in record.get("attributes") or ())
        given = record.get("box")
        box = None if given is None else np.asarray(check_boxes(given)[0], np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise FaceSetError(f"{image}: {str(error).removeprefix('box 0 is ')}") from error
    if not 0 <= weight <= 1 or (trust is not None and not ((trust >= 0) & (trust <= 1)).all()):
        raise FaceSetError(f"{image}: trust must be from 0 to 1")
    each = None if trust is None else trust.astype(np.float32)
    if landmarks is not None:
        if each is not None and each.shape != landmarks.shape[:1]:
            raise FaceSetError(f"{image}: {len(landmarks)} landmarks need as many point_weights, found {each.size}")
        landmarks, tight = labelled_landmarks(landmarks, each, str(image))
        box = tight if box is None else box
    if box is None:
        raise FaceSetError(f"{image}: a face needs landmarks or a box")
    return Face(image, box, landmarks, attributes, weight, each, str(image), encoded)


def _landmarks(values: object) -> NDArray[np.float32] | None:
    if values is None:
        return None
    landmarks = np.array(values, np.float64)
    pairs = landmarks.size > 0 and ((landmarks.ndim == 1 and not landmarks.size % 2) or landmarks.shape[1:] == (2,))
    if not pairs or not (np.abs(landmarks) < LARGEST_COORDINATE).all():
        raise ValueError("landmarks must be pairs of finite numbers below 1e9")
    return landmarks.reshape(-1, 2).astype(np.float32)


@dataclass(frozen=True, slots=True)
class TarUnit:
    """Consecutive photographs of a tar file.

    Attributes:
        path: The tar file.
        start: Byte offset of the first member of the first photograph.
        count: Number of photographs.
    """

    path: Path
    start: int
    count: int

    def photos(self) -> Iterator[DatasetPhoto]:
        """Read the photographs in order, one in memory at a time."""
        with self.path.open("rb") as file:
            left = self.count
            for group in _groups(self.path, file, self.start, keep=True):
                yield self._photo(group)
                left -= 1
                if not left:
                    return
        raise FaceSetError(f"{self.path}: changed while it was read, {left} photographs are missing")

    def _photo(self, group: "_Group") -> DatasetPhoto:
        image = self.path / (group.photo or group.key)
        if not group.photo:
            raise FaceSetError(f"{image}: no photograph beside its .json ({', '.join(sorted(PHOTO_SUFFIXES))})")
        name = f"{self.path.stem}/{group.photo}"
        if group.annotation is None:
            return DatasetPhoto(image, name, encoded=group.encoded)
        try:
            record = json.loads(group.annotation)
        except ValueError as error:
            raise FaceSetError(f"{self.path / group.key}.json: not JSON ({error})") from error
        if not isinstance(record, dict):
            raise FaceSetError(f"{self.path / group.key}.json: expected an object with landmarks, box or faces")
        return DatasetPhoto(image, name, annotated_faces(record, image, group.encoded), group.encoded)


def tar_units(path: Path, size: int = UNIT_FACES) -> Iterator[TarUnit]:
    """Divide a tar file into units; reads its headers only.

    Raises:
        FaceSetError: It is damaged, compressed, or holds no photographs.
    """
    start, count = 0, 0
    with path.open("rb") as file:
        for group in _groups(path, file, 0, keep=False):
            if count == size:
                yield TarUnit(path, start, count)
                count = 0
            if not count:
                start = group.start
            count += 1
    if not count:
        raise FaceSetError(f"{path}: no photographs in it ({', '.join(sorted(PHOTO_SUFFIXES))})")
    yield TarUnit(path, start, count)


@dataclass(slots=True)
class _Group:
    """Members of one key: the photograph's name and contents, and the contents of its JSON file."""

    key: str
    start: int
    photo: str = ""
    encoded: bytes = field(default=b"", repr=False)
    annotation: bytes | None = field(default=None, repr=False)


def _groups(path: Path, file: BinaryIO, start: int, *, keep: bool) -> Iterator[_Group]:
    """Gather members by key, with their contents if `keep`; members of other kinds are ignored."""
    current = _Group("", start)
    for member, tar in _members(path, file, start):
        folder, _, last = member.name.rpartition("/")
        stem, dot, suffix = last.partition(".")
        if not member.isfile() or not stem or last.startswith("__"):
            continue
        key = f"{folder}/{stem}" if folder else stem
        if key != current.key:
            if current.photo or current.annotation is not None:
                yield current
            current = _Group(key, member.offset)
        kind = (dot + suffix).lower()
        if kind in PHOTO_SUFFIXES and not current.photo:
            current.photo = member.name
            current.encoded = _contents(path, tar, member) if keep else b""
        elif kind == ".json":
            current.annotation = _contents(path, tar, member) if keep else b""
    if current.photo or current.annotation is not None:
        yield current


def _members(path: Path, file: BinaryIO, start: int) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                yield member, tar
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every member in memory
            # tarfile takes a tar that was cut off inside a header for a whole one.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise FaceSetError(f"{path}: cut off: the mark at its end is missing")
    except tarfile.TarError as error:
        raise FaceSetError(
            f"{path}: not a tar that can be read ({error}); shards are plain tars, not compressed ones"
        ) from error


def _contents(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    contents = b"" if opened is None else opened.read()
    if len(contents) != member.size:
        raise FaceSetError(f"{path / member.name}: cut off after {len(contents)} of {member.size} bytes")
    return contents


@dataclass(frozen=True, slots=True)
class ParquetUnit:
    """Consecutive row groups of a Parquet file.

    Attributes:
        path: The file.
        groups: Indices of the row groups.
        first: Index of the first row in the file.
        count: Number of rows.
    """

    path: Path
    groups: tuple[int, ...]
    first: int
    count: int

    def photos(self) -> Iterator[DatasetPhoto]:
        """Read the photographs in order, a few rows at a time."""
        with _open_parquet(self.path) as file:
            columns = [name for name in ("image", *FACE_FIELDS, "faces") if name in file.schema_arrow.names]
            row = self.first
            try:
                for batch in file.iter_batches(_PARQUET_ROWS, row_groups=list(self.groups), columns=columns):
                    for record in batch.to_pylist():
                        yield _parquet_photo(self.path, row, record)
                        row += 1
            except OSError as error:
                raise FaceSetError(f"{self.path}: row {row} or the next can't be read ({error})") from error


def parquet_units(path: Path, size: int = UNIT_FACES) -> Iterator[ParquetUnit]:
    """Divide a Parquet file into units of whole row groups; reads its footer only.

    Raises:
        FaceSetError: It is damaged, or has no ``image`` column.
        MissingPackageError: pyarrow is not installed.
    """
    with _open_parquet(path) as file:
        if "image" not in file.schema_arrow.names:
            raise FaceSetError(f"{path}: no column `image`; found {', '.join(file.schema_arrow.names)}")
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    groups: list[int] = []
    first = count = 0
    for group, more in enumerate(rows):
        if groups and count + more > size:
            yield ParquetUnit(path, tuple(groups), first, count)
            groups, first, count = [], first + count, 0
        groups.append(group)
        count += more
    if count:
        yield ParquetUnit(path, tuple(groups), first, count)


def _open_parquet(path: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "Parquet files need pyarrow: install it with `pip install 'pfld-edge[parquet]'`"
        ) from error
    try:
        # By default pyarrow reads a whole row group into memory.
        return ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (ArrowInvalid, OSError) as error:
        raise FaceSetError(f"{path}: not a Parquet file that can be read ({error})") from error


def _parquet_photo(path: Path, row: int, record: dict[str, Any]) -> DatasetPhoto:
    image = record["image"] if isinstance(record["image"], dict) else {"bytes": record["image"]}
    label = str(image.get("path") or f"row-{row}")
    encoded = image.get("bytes")
    if not isinstance(encoded, bytes):
        raise FaceSetError(f"{path}, row {row}: no image bytes in column `image`")
    place = path / label
    return DatasetPhoto(place, f"{path.stem}/{label}", annotated_faces(record, place, encoded), encoded)
