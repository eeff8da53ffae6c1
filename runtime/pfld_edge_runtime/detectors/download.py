"""Fetches a published detector file: only when asked, whole or not at all, and only if it is the file that is meant."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from pfld_edge_runtime.detectors.catalogue import DetectorFile, named_file
from pfld_edge_runtime.detectors.errors import DownloadError

__all__ = ["download_detector", "is_intact"]

_CHUNK = 1 << 16


def download_detector(
    name: str, folder: Path | None = None, advance: Callable[[int], object] | None = None, timeout: float = 30.0
) -> Path:
    """Download a detector, unless its file is there already.

    Args:
        name: ``yunet``, ``scrfd``, ``scrfd-2.5g`` or ``ultraface``.
        folder: Where to put it; None for the cache folder, where `open_detector` looks.
        advance: Called with the number of bytes of each part that came.
        timeout: Seconds that the server may stay silent.

    Returns:
        The file's path.

    Raises:
        DetectorError: There is no detector of that name.
        DownloadError: The address could not be reached, or gave another file than was published.
        OSError: The folder can't be made or written to.
    """
    entry = named_file(name)
    path = entry.path(folder)
    if is_intact(entry, path):
        return path
    data = _fetch(entry, path, advance or (lambda _: None), timeout)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def is_intact(entry: DetectorFile, path: Path) -> bool:
    """Say whether a file is there and is the one that was published."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256


def _fetch(entry: DetectorFile, path: Path, advance: Callable[[int], object], timeout: float) -> bytes:
    """Read the file from its address, never more than its size, and compare it."""
    # Imported here: they bring ssl, which an app that never downloads need not load.
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    parts, left = [], entry.size
    try:
        with urlopen(entry.url, timeout=timeout) as answer:  # noqa: S310 - an address of our own table
            while left > 0 and (part := answer.read(min(_CHUNK, left))):
                parts.append(part)
                left -= len(part)
                advance(len(part))
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"{entry.url} could not be fetched ({reason}): fetch it where there is a network and put it at {path}"
        ) from error
    data = b"".join(parts)
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise DownloadError(
            f"{entry.url} gave another file than was published ({len(data)} of {entry.size} bytes, SHA-256 "
            f"{found[:12]}..., not {entry.sha256[:12]}...): nothing was kept; put the published file at {path}"
        )
    return data
