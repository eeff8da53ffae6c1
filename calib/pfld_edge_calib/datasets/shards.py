"""Shards: WebDataset tar files and Parquet files that hold photographs with their annotations.

Tar: ``key.jpg`` and ``key.json`` with the same key, which is the member's name up to the first dot of its last part;
members of one key are adjacent, as in the WebDataset format (https://github.com/webdataset/webdataset). Nothing is
extracted: a unit holds the byte offset of its first member. Parquet: one photograph a row, its encoded bytes in the
column ``image``, or as ``{"bytes", "path"}`` in Hugging Face's layout.

An annotation has `FACE_FIELDS` of the only face, or ``faces``, a list of such records. A damaged member is a
`DatasetPhoto` with an ``error``, and so is the rest of a shard that can't be read any further.
"""

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import UNIT_FACES, DatasetPhoto, Face, Unit, labelled_face, without_unlabelled
from pfld_edge_calib.photo import PHOTO_SUFFIXES
from pfld_edge_runtime import MissingPackageError
from pfld_edge_runtime.arrays import Float64Array
from pfld_edge_runtime.crop import check_boxes

FACE_FIELDS = ("landmarks", "box", "attributes", "weight", "point_weights")
"""Fields of a face; all are optional, but ``landmarks`` or ``box`` must be there."""

_PARQUET_ROWS = 16
"""Rows read at a time; few, since each holds a photograph."""


def _photo(image: Path, name: str, record: object, encoded: bytes) -> DatasetPhoto:
    """Read the annotation of a photograph.

    ``landmarks`` are P pairs or 2 P numbers in photograph pixels; ``box`` is x0, y0, x1, y1, by default the landmarks'
    tight box; ``attributes`` are names; weights are from 0 to 1. Other fields are ignored.
    """
    try:
        return DatasetPhoto(image, name, _faces(record, image, encoded), encoded)
    except FaceSetError as error:
        return DatasetPhoto(image, name, encoded=encoded, error=str(error))


def _faces(record: object, image: Path, encoded: bytes) -> tuple[Face, ...] | None:
    if not isinstance(record, Mapping):
        raise FaceSetError(f"{image.with_suffix('.json')}: expected an object with landmarks, box or faces")
    faces = record.get("faces")
    if faces is None:
        if record.get("landmarks") is None and record.get("box") is None:
            return None
        faces = [record]
    if not isinstance(faces, list) or not all(isinstance(face, dict) for face in faces):
        raise FaceSetError(f"{image}: faces must be a list of objects with landmarks or a box")
    return tuple(_face(face, image, encoded) for face in faces)


def _face(record: Mapping[str, Any], image: Path, encoded: bytes) -> Face:
    try:
        landmarks = _landmarks(record.get("landmarks"))
        weight = 1.0 if record.get("weight") is None else float(record["weight"])
        each = None if record.get("point_weights") is None else np.array(record["point_weights"], np.float64)
        attributes = frozenset(str(name) for name in record.get("attributes") or ())
        given = record.get("box")
        box = None if given is None else np.asarray(check_boxes(given)[0], np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise FaceSetError(f"{image}: {str(error).removeprefix('box 0 is ')}") from error
    if landmarks is None:
        if box is None:
            raise FaceSetError(f"{image}: a face needs landmarks or a box")
        return Face(image, box, None, attributes, weight, None, str(image), encoded)
    if each is None:
        landmarks, each = without_unlabelled(landmarks)
    face = labelled_face(
        image, landmarks, str(image), attributes=attributes, weight=weight, point_weights=each, group=str(image)
    )
    return replace(face, encoded=encoded, bbox_xyxy=face.bbox_xyxy if box is None else box)


def _landmarks(values: object) -> Float64Array | None:
    if values is None:
        return None
    landmarks = np.array(values, np.float64)
    if not landmarks.size or (landmarks.size % 2 if landmarks.ndim == 1 else landmarks.shape[1:] != (2,)):
        raise ValueError("landmarks must be pairs of finite numbers")
    return landmarks.reshape(-1, 2)


def _until_damaged(path: Path, read: Callable[..., Iterator[DatasetPhoto]], *where: object) -> Iterator[DatasetPhoto]:
    """Read photographs; what ends this early is the last one's error."""
    try:
        yield from read(path, *where)
    except (FaceSetError, OSError) as error:
        yield DatasetPhoto(path, path.name, error=str(error))


def tar_units(path: Path, size: int = UNIT_FACES) -> Iterator[Unit]:
    """Divide a tar file into units of at most `size` photographs; reads its headers only.

    FaceSetError where it is compressed, holds no photographs, or is damaged, after the units before the damage.
    """
    start, count = 0, 0
    damage: FaceSetError | None = None
    try:
        with path.open("rb") as file:
            for group in _groups(path, file, 0, keep=False):
                if count == size:
                    yield Unit(count, partial(_until_damaged, path, _read_tar, start, count))
                    count = 0
                if not count:
                    start = group.start
                count += 1
    except FaceSetError as error:
        damage = error
    if count:
        yield Unit(count, partial(_until_damaged, path, _read_tar, start, count))
    if damage is not None:
        raise damage
    if not count:
        raise FaceSetError(f"{path}: no photographs in it ({', '.join(sorted(PHOTO_SUFFIXES))})")


def _read_tar(path: Path, start: int, count: int) -> Iterator[DatasetPhoto]:
    """Read photographs in order, one in memory at a time."""
    left = count
    with path.open("rb") as file:
        for group in islice(_groups(path, file, start, keep=True), count):
            yield _tar_photo(path, group)
            left -= 1
    if left:
        raise FaceSetError(f"{path}: changed while it was read, {left} photographs are missing")


@dataclass(slots=True)
class _Group:
    """Members of one key: the photograph's name and contents, and the contents of its JSON file."""

    key: str
    start: int
    photo: str = ""
    encoded: bytes = field(default=b"", repr=False)
    annotation: bytes | None = field(default=None, repr=False)


def _tar_photo(path: Path, group: _Group) -> DatasetPhoto:
    image, name = path / (group.photo or group.key), f"{path.stem}/{group.photo or group.key}"
    if not group.photo:
        suffixes = ", ".join(sorted(PHOTO_SUFFIXES))
        return DatasetPhoto(image, name, error=f"{image}: no photograph beside its .json ({suffixes})")
    try:
        record = {} if group.annotation is None else json.loads(group.annotation)
    except (ValueError, RecursionError) as error:
        return DatasetPhoto(image, name, encoded=group.encoded, error=f"{path / group.key}.json: not JSON ({error})")
    return _photo(image, name, record, group.encoded)


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


def parquet_units(path: Path, size: int = UNIT_FACES) -> Iterator[Unit]:
    """Divide a Parquet file into units of whole row groups; reads its footer only.

    FaceSetError where it is damaged, or has no ``image`` column; MissingPackageError where pyarrow is not installed.
    """
    with _open_parquet(path) as file:
        if "image" not in file.schema_arrow.names:
            raise FaceSetError(f"{path}: no column `image`; found {', '.join(file.schema_arrow.names)}")
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    groups: list[int] = []
    first = count = 0
    for group, more in enumerate(rows):
        if groups and count + more > size:
            yield Unit(count, partial(_until_damaged, path, _read_parquet, tuple(groups), first))
            groups, first, count = [], first + count, 0
        groups.append(group)
        count += more
    if count:
        yield Unit(count, partial(_until_damaged, path, _read_parquet, tuple(groups), first))


def _read_parquet(path: Path, groups: tuple[int, ...], row: int) -> Iterator[DatasetPhoto]:
    """Read the photographs of row groups in order, a few rows at a time; `row` is the first one's number."""
    with _open_parquet(path) as file:
        columns = [name for name in ("image", *FACE_FIELDS, "faces") if name in file.schema_arrow.names]
        try:
            for batch in file.iter_batches(_PARQUET_ROWS, row_groups=list(groups), columns=columns):
                for record in batch.to_pylist():
                    yield _parquet_photo(path, row, record)
                    row += 1
        except (OSError, ValueError) as error:
            raise FaceSetError(f"{path}: row {row} or the next can't be read ({error})") from error


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
    name = f"{path.stem}/{label}"
    encoded = image.get("bytes")
    if not isinstance(encoded, bytes):
        return DatasetPhoto(path / label, name, error=f"{path}, row {row}: no image bytes in column `image`")
    return _photo(path / label, name, record, encoded)


def member_of(shard: Path, name: str) -> bytes | None:
    """Search a shard for a photograph by the member's name, or ``row-7``; None where there is no such member."""
    if shard.suffix.lower() == ".tar":
        with shard.open("rb") as file, suppress(FaceSetError):
            members = _members(shard, file, 0)
            return next((_contents(shard, tar, member) for member, tar in members if member.name == name), None)
    elif shard.suffix.lower() == ".parquet":
        with _open_parquet(shard) as file:
            batches = file.iter_batches(_PARQUET_ROWS, columns=["image"])
            for row, record in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches)):
                photo = _parquet_photo(shard, row, record)
                if photo.image == shard / name or name == f"row-{row}":
                    return photo.encoded
    return None
