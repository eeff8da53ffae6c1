"""Opens a set of faces of any size, whatever it is kept in."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.photo import PHOTO_SUFFIXES
from pfld_edge_calib.sources.face_lists import csv_units, list_hash, wflw_units
from pfld_edge_calib.sources.parquet_shards import parquet_units
from pfld_edge_calib.sources.tar_shards import tar_units
from pfld_edge_calib.sources.unit import UNIT_FACES, FaceSource, Unit
from pfld_edge_calib.wflw import wflw_list

__all__ = ["is_sharded", "open_shards", "open_source", "shards_of"]

_SHARDS: dict[str, Callable[[Path, int], Iterator[Unit]]] = {".tar": tar_units, ".parquet": parquet_units}
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def open_source(
    path: Path,
    split: str = "test",
    images: Path | None = None,
    size: int = UNIT_FACES,
    advance: Callable[[int], object] | None = None,
) -> FaceSource:
    """Cut a set into units.

    Args:
        path: A WFLW folder; a CSV of points; a tar or Parquet file, a folder of them, or ``name-{000..099}.tar``.
        split: Which list of a WFLW folder, ``train`` or ``test``.
        images: For a CSV, the folder that its image column is relative to.
        size: Photographs or lines of a unit.
        advance: Called with the number of photographs that each new unit has.

    Raises:
        FaceSetError: The path is none of these, or is damaged.
        MissingPackageError: It needs a package that is not installed.
    """
    if is_sharded(path):
        return open_shards([path], size, advance)
    if (path / "WFLW_annotations").is_dir():
        faces = wflw_list(path, split)
        return FaceSource(tuple(_told(wflw_units(faces, path / "WFLW_images", size), advance)), list_hash(faces))
    if path.suffix.lower() == ".csv":
        return FaceSource(tuple(_told(csv_units(path, images, size), advance)), list_hash(path))
    raise FaceSetError(
        f"{path}: no labelled faces here (expected a WFLW folder, a CSV of points, or .tar or .parquet shards)"
    )


def open_shards(
    paths: list[Path], size: int = UNIT_FACES, advance: Callable[[int], object] | None = None
) -> FaceSource:
    """Cut shards into units.

    Args:
        paths: What `is_sharded` says yes to.
        size: Photographs of a unit; a Parquet file's row groups stay whole.
        advance: Called with the number of photographs that each new unit has.

    Raises:
        FaceSetError: One is missing or damaged.
        MissingPackageError: pyarrow is not installed.
    """
    shards = list(chain.from_iterable(shards_of(path) for path in paths))
    units: list[Unit] = []
    digest = hashlib.sha256(f"{size}\n".encode())
    for shard in shards:
        units += _told(_SHARDS[shard.suffix.lower()](shard, size), advance)
        known = shard.stat()
        # Reading terabytes for their hash would take as long as the run.
        digest.update(f"{shard.name} {known.st_size} {known.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return FaceSource(tuple(units), digest.hexdigest())


def is_sharded(path: Path) -> bool:
    """Whether a path names shards: a tar or Parquet file, a folder of them, or a name with a range in braces."""
    if not path.is_dir():
        return path.suffix.lower() in _SHARDS
    # A folder of photographs that holds a tar too is one of photographs.
    looked_for = (file.suffix.lower() for file in path.iterdir())
    first = next((suffix for suffix in looked_for if suffix in PHOTO_SUFFIXES or suffix in _SHARDS), "")
    return first in _SHARDS and not any(file.suffix.lower() in PHOTO_SUFFIXES for file in path.iterdir())


def shards_of(path: Path) -> list[Path]:
    """Name the shards, in order: a folder's by name, a range's by number.

    Raises:
        FaceSetError: One is missing.
    """
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix.lower() in _SHARDS and file.is_file())
    names = _expanded(str(path))
    missing = [name for name in names if not Path(name).is_file()]
    if missing:
        raise FaceSetError(f"{missing[0]}: no such shard")
    return [Path(name) for name in names]


def _told(units: Iterable[Unit], advance: Callable[[int], object] | None) -> Iterator[Unit]:
    for unit in units:
        if advance is not None:
            advance(unit.count)
        yield unit


def _expanded(name: str) -> list[str]:
    """Write out ranges as a shell does: ``{008..011}`` keeps the zeros."""
    found = _BRACES.search(name)
    if found is None:
        return [name]
    first, last = found.groups()
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    numbers = range(int(first), int(last) + 1)
    before, after = name[: found.start()], name[found.end() :]
    return [whole for number in numbers for whole in _expanded(f"{before}{number:0{width}}{after}")]
