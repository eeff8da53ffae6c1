"""`open_faces`: the one way to open annotated faces, whatever they are stored in."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pfld_edge_calib.datasets.coco import read_coco
from pfld_edge_calib.datasets.points_csv import csv_units
from pfld_edge_calib.datasets.pts import pts_files, read_pts
from pfld_edge_calib.datasets.shards import parquet_units, tar_units
from pfld_edge_calib.datasets.wflw import wflw_list, wflw_units
from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import UNIT_FACES, Face, Skip, Unit, photo_units, photos_of_faces, refuse, unit_faces
from pfld_edge_calib.files import sha256_of
from pfld_edge_calib.photo import PHOTO_SUFFIXES

_SHARDS: dict[str, Callable[[Path, int], Iterator[Unit]]] = {".tar": tar_units, ".parquet": parquet_units}
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class FaceSet:
    """A dataset of faces, divided into work units in an order that depends on the dataset only.

    Iterating yields the annotated faces one by one, and raises FaceSetError at one that is damaged or has no
    annotation; `units` is for work in several processes. `identity` is a hash that changes when the dataset changes.
    """

    units: tuple[Unit, ...]
    identity: str
    name: str = ""

    @property
    def count(self) -> int:
        """Number of photographs, or of lines of a list of faces."""
        return sum(unit.count for unit in self.units)

    def __iter__(self) -> Iterator[Face]:
        """Read all annotated faces in order."""
        return chain.from_iterable(map(unit_faces, self.units))

    def load(self, skip: Skip = refuse) -> list[Face]:
        """Read all annotated faces into memory, at least one; `skip` is that of `unit_faces`, as are the errors."""
        faces = [face for unit in self.units for face in unit_faces(unit, skip)]
        if not faces:
            raise FaceSetError(f"{self.name}: the list is empty: expected at least one face")
        return faces


def open_faces(
    paths: Path | Sequence[Path],
    split: str = "test",
    images: Path | None = None,
    *,
    size: int = UNIT_FACES,
    advance: Callable[[int], object] = lambda _count: None,
    skip: Skip = refuse,
) -> FaceSet:
    """Open one or several datasets of annotated faces as one.

    `paths` are WFLW folders, of which `split` chooses the list (``train`` or ``test``); folders of ``.pts`` files; CSV
    files of landmarks; COCO keypoint files (``.json``); tar or Parquet shards, folders of them, or
    ``name-{000..099}.tar``. Images of CSV, COCO and ``.pts`` files are relative to `images`, or to their own folder. A
    unit has at most `size` photographs or lines; a Parquet file's row groups stay whole. `advance` gets the number of
    photographs in each unit that was found, `skip` the error of each shard that is damaged, whose photographs before
    the damage are kept.

    Raises:
        FaceSetError: A path is none of these, or is damaged.
        MissingPackageError: Parquet files need pyarrow, which is not installed.
    """
    units: list[Unit] = []
    identities = []
    given = [paths] if isinstance(paths, Path) else list(paths)
    for path in given:
        found, identity = _opened(path, split, images, size, skip)
        identities.append(identity)
        for unit in found:
            units.append(unit)
            advance(unit.count)
    identity = identities[0] if len(identities) == 1 else hashlib.sha256(" ".join(identities).encode()).hexdigest()
    return FaceSet(tuple(units), identity, ", ".join(map(str, given)))


def _opened(path: Path, split: str, images: Path | None, size: int, skip: Skip) -> tuple[Iterable[Unit], str]:
    """Units of one dataset, and its identity."""
    suffix = path.suffix.lower()
    if is_sharded(path):
        return _shards(path, size, skip)
    if (path / "WFLW_annotations").is_dir():
        units = list(wflw_units(path, split, size))
        return units, sha256_of(wflw_list(path, split))
    if suffix == ".csv":
        if not path.is_file():
            raise FaceSetError(f"{path}: no such CSV file")
        return csv_units(path, images, size), sha256_of(path)
    if suffix == ".json":
        return photo_units(photos_of_faces(read_coco(path, images)), size), sha256_of(path)
    if not path.exists():
        raise FaceSetError(f"{path}: no such folder or file")
    if path.is_dir() and (files := pts_files(path)):
        digest = "".join(f"{file.relative_to(path)} {sha256_of(file)}\n" for file in files)
        identity = hashlib.sha256(digest.encode(errors="surrogateescape")).hexdigest()
        return photo_units(photos_of_faces(read_pts(path, images)), size), identity
    raise FaceSetError(
        f"{path}: no labelled faces here (expected a WFLW folder, a folder of .pts files, a CSV of points, a COCO "
        "file, or .tar or .parquet shards)"
    )


def _shards(path: Path, size: int, skip: Skip) -> tuple[Iterator[Unit], str]:
    shards = _shard_paths(path)
    digest = hashlib.sha256(f"{size}\n".encode())
    for shard in shards:
        known = shard.stat()
        # Hashing the contents of terabytes would take as long as the run.
        digest.update(f"{shard.name} {known.st_size} {known.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return chain.from_iterable(_shard_units(shard, size, skip) for shard in shards), digest.hexdigest()


def _shard_units(shard: Path, size: int, skip: Skip) -> Iterator[Unit]:
    try:
        yield from _SHARDS[shard.suffix.lower()](shard, size)
    except (FaceSetError, OSError) as error:
        skip(error if isinstance(error, FaceSetError) else FaceSetError(f"{shard}: {error.strerror or error}"))


def is_sharded(path: Path) -> bool:
    """Whether a path names shards: a tar or Parquet file, a folder of them, or a name with a range in braces.

    A folder that holds photographs as well is a folder of photographs.
    """
    if not path.is_dir():
        return path.suffix.lower() in _SHARDS
    suffixes = {file.suffix.lower() for file in path.iterdir() if not file.name.startswith(".")}
    return not suffixes & PHOTO_SUFFIXES and bool(suffixes & _SHARDS.keys())


def _shard_paths(path: Path) -> list[Path]:
    """List shards in order: a folder's by name, a range's by number; raises FaceSetError where one is missing."""
    if path.is_dir():
        files = (file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        return sorted(file for file in files if file.suffix.lower() in _SHARDS)
    names = _expanded(str(path))
    missing = next((name for name in names if not Path(name).is_file()), None)
    if missing is not None:
        raise FaceSetError(f"{missing}: no such shard")
    return [Path(name) for name in names]


def _expanded(name: str) -> list[str]:
    """Expand ranges as a shell does: ``{008..011}`` keeps the zeros."""
    found = _BRACES.search(name)
    if found is None:
        return [name]
    first, last = found.groups()
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    numbers = range(int(first), int(last) + 1)
    before, after = name[: found.start()], name[found.end() :]
    return [whole for number in numbers for whole in _expanded(f"{before}{number:0{width}}{after}")]
