"""WebDataset shards: tar files in which ``key.jpg`` is followed by ``key.json``.

A key is the member's name up to the first dot of its last part, and members of one key stand together, as the
WebDataset format has it (https://github.com/webdataset/webdataset). Nothing is extracted: a unit knows the byte at
which its first member begins, and reads on from there.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.photo import PHOTO_SUFFIXES
from pfld_edge_calib.sources.annotation import annotated_faces
from pfld_edge_calib.sources.unit import UNIT_FACES, SourcePhoto

__all__ = ["TarUnit", "tar_units"]


@dataclass(frozen=True, slots=True)
class TarUnit:
    """Neighbouring photographs of one tar.

    Attributes:
        path: The tar.
        start: Byte at which the first photograph's first member begins.
        count: Photographs.
    """

    path: Path
    start: int
    count: int

    def photos(self) -> Iterator[SourcePhoto]:
        """Read them in order, never two at a time."""
        with self.path.open("rb") as file:
            left = self.count
            for group in _groups(self.path, file, self.start, keep=True):
                yield self._photo(group)
                left -= 1
                if not left:
                    return
        raise FaceSetError(f"{self.path}: changed while it was read, {left} photographs are missing")

    def _photo(self, group: "_Group") -> SourcePhoto:
        image = self.path / (group.photo or group.key)
        if not group.photo:
            raise FaceSetError(f"{image}: no photograph beside its .json ({', '.join(sorted(PHOTO_SUFFIXES))})")
        name = f"{self.path.stem}/{group.photo}"
        if group.notes is None:
            return SourcePhoto(image, name, encoded=group.encoded)
        try:
            record = json.loads(group.notes)
        except ValueError as error:
            raise FaceSetError(f"{self.path / group.key}.json: not JSON ({error})") from error
        if not isinstance(record, dict):
            raise FaceSetError(f"{self.path / group.key}.json: expected an object with landmarks, box or faces")
        return SourcePhoto(image, name, annotated_faces(record, image, group.encoded), group.encoded)


def tar_units(path: Path, size: int = UNIT_FACES) -> Iterator[TarUnit]:
    """Cut a tar into units; reads its headers only.

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
    """Members of one key."""

    key: str
    start: int
    photo: str = ""
    encoded: bytes = field(default=b"", repr=False)
    notes: bytes | None = field(default=None, repr=False)

    @property
    def counts(self) -> bool:
        """Whether it is a photograph, or should be one: other members of a tar are none of ours."""
        return bool(self.photo) or self.notes is not None


def _groups(path: Path, file: BinaryIO, start: int, *, keep: bool) -> Iterator[_Group]:
    """Gather members by key, with their contents where they are to be kept."""
    current = _Group("", start)
    for member, tar in _members(path, file, start):
        folder, _, last = member.name.rpartition("/")
        stem, dot, suffix = last.partition(".")
        if not member.isfile() or not stem or last.startswith("__"):
            continue
        key = f"{folder}/{stem}" if folder else stem
        if key != current.key:
            if current.counts:
                yield current
            current = _Group(key, member.offset)
        kind = (dot + suffix).lower()
        if kind in PHOTO_SUFFIXES and not current.photo:
            current.photo = member.name
            current.encoded = _contents(path, tar, member) if keep else b""
        elif kind == ".json":
            current.notes = _contents(path, tar, member) if keep else b""
    if current.counts:
        yield current


def _members(path: Path, file: BinaryIO, start: int) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                yield member, tar
                # tarfile remembers every member; a large tar's would fill the memory.
                tar.members = []  # type: ignore[attr-defined]
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
