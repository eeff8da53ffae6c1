"""Finds a single photograph in a shard again, by the path that messages and reports call it by."""

import re
import tarfile
from pathlib import Path

__all__ = ["packed_photo"]


def packed_photo(path: Path) -> bytes | None:
    """Read ``shard.tar/key.jpg`` or ``shard.parquet/row-7``; slow, for it searches the shard.

    Returns:
        The photograph's file; None where the path leads into no shard, or the shard has no such photograph.
    """
    shard = next((parent for parent in path.parents if parent.is_file()), None)
    if shard is None:
        return None
    name = path.relative_to(shard).as_posix()
    if shard.suffix.lower() == ".tar":
        return _in_tar(shard, name)
    return _in_parquet(shard, name) if shard.suffix.lower() == ".parquet" else None


def _in_tar(shard: Path, name: str) -> bytes | None:
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.name == name and (opened := tar.extractfile(member)) is not None:
                    return opened.read()
                tar.members = []  # type: ignore[attr-defined]
    except tarfile.TarError:
        return None
    return None


def _in_parquet(shard: Path, name: str) -> bytes | None:
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
