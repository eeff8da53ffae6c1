"""onnxruntime-web, fetched once with npm and kept only if it is the pinned package."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from pfld_edge.errors import InputError
from pfld_edge.output_file import write_atomically
from pfld_edge_runtime.cache_folder import cache_folder

__all__ = ["VERSION", "WEB_FILES", "web_runtime_files"]

VERSION = "1.27.0"
_SHA512 = "ogDLsqIozHZwifPuN37OproAo0byX6t43/bP8GzeZWBWD6MOGExswFAx3up4NS/vvWBOg2u2PXomDt3rMmdQSg=="
WEB_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""The two files of the package that the page loads."""


def web_runtime_files(source: Path | None = None) -> dict[str, bytes]:
    """Read the files of onnxruntime-web that the page needs.

    Args:
        source: The package's ``.tgz``, or a folder with its files (``dist``, or what holds it; taken as it is); None
            for the package in the cache folder, which npm fetches the first time.

    Returns:
        File name to contents.

    Raises:
        InputError: The package can't be had, or isn't the pinned one.
    """
    if source is not None and source.is_dir():
        folder = source / "dist" if (source / "dist").is_dir() else source
        missing = [name for name in WEB_FILES if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{source}: {missing[0]} is not there; give the folder of onnxruntime-web {VERSION}")
        return {name: (folder / name).read_bytes() for name in WEB_FILES}
    tarball = source or _cached()
    if base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode() != _SHA512:
        raise InputError(f"{tarball}: not the package onnxruntime-web {VERSION} (its SHA-512 differs); remove it")
    with tarfile.open(tarball) as package:
        found = {name: package.extractfile(f"package/dist/{name}") for name in WEB_FILES}
        return {name: file.read() for name, file in found.items() if file is not None}


def _cached() -> Path:
    path = cache_folder() / f"onnxruntime-web-{VERSION}.tgz"
    if path.is_file():
        return path
    npm = shutil.which("npm")
    hint = f"give --onnxruntime-web the folder or .tgz of onnxruntime-web {VERSION}"
    if npm is None:
        raise InputError(f"npm is not installed, which fetches onnxruntime-web: install it, or {hint}")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent", "--prefer-offline"]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)  # noqa: S603 - constant arguments
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode or not packed:
            raise InputError(f"npm can't fetch onnxruntime-web {VERSION} (no network?): {hint}")
        write_atomically(path, packed[0].read_bytes())
    return path
