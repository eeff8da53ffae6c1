"""Keeps cut calibration faces between runs."""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.cache_folder import cache_folder as project_cache_folder

__all__ = ["cache_folder", "file_signs", "load_crops", "save_crops", "sources_key"]

_FORMAT = 1
"""To be raised when crops are cut or chosen differently, so that old ones are not taken for new."""


def cache_folder() -> Path:
    """Where they lie: ``calibration`` in pfld-edge's cache folder."""
    return project_cache_folder() / "calibration"


def file_signs(path: Path) -> list[str]:
    """What changes when a file, or any file under a folder, changes: names, sizes, times."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    stats = ((item, item.stat()) for item in files if item.exists())
    return [f"{item.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}" for item, stat in stats]


def sources_key(*parts: object) -> str:
    """Name of the cache entry for crops that were made from all of these."""
    return hashlib.sha256(repr((_FORMAT, parts)).encode()).hexdigest()[:32]


def load_crops(key: str) -> NDArray[np.uint8] | None:
    """``(N, S, S, 3)`` uint8, or None where there are none, or what there is can't be read."""
    try:
        with (cache_folder() / f"{key}.npy").open("rb") as file:
            crops = np.load(file)
    except (OSError, ValueError, EOFError):
        return None
    return crops if crops.dtype == np.uint8 and crops.ndim == 4 else None


def save_crops(key: str, crops: NDArray[np.uint8]) -> None:
    """Write crops under a temporary name, then rename; a cache that can't be written is no error."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{key}.", suffix=".partial", dir=folder)
    except OSError:
        return
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, crops)
        temporary.replace(folder / f"{key}.npy")
    except OSError:
        return
    finally:
        temporary.unlink(missing_ok=True)
