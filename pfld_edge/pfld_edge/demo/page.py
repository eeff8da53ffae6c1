"""The browser demo: a static folder that finds landmarks in a browser, and a server for it."""

import base64
import errno
import functools
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pfld_edge.console import InputError
from pfld_edge_calib import PORTRAITS
from pfld_edge_calib.files import write_atomically
from pfld_edge_convert.end_to_end import end_to_end_model
from pfld_edge_convert.model_file import load_onnx, read_contract
from pfld_edge_runtime.detection.architectures import PfldEdgeDetector, YuNet
from pfld_edge_runtime.detection.catalogue import cache_folder, detector_path, open_detector
from pfld_edge_runtime.errors import naming
from pfld_edge_runtime.geometry.pose import FACE_SHAPE, RIGID_POINTS
from pfld_edge_runtime.session import open_session

_SITE = Path(__file__).parent / "site"
VERSION = "1.27.0"
_SHA512 = "ogDLsqIozHZwifPuN37OproAo0byX6t43/bP8GzeZWBWD6MOGExswFAx3up4NS/vvWBOg2u2PXomDt3rMmdQSg=="
WEB_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""The two files of the package that the page loads."""


def write_page_folder(
    folder: Path, models: Sequence[Path], web_runtime: Path | None = None, detector: str | Path = "bundled"
) -> None:
    """Write everything that the page loads, so that any web server can host it; files of these names are replaced.

    Args:
        folder: Where to.
        models: Plain ONNX files with a contract; each becomes an end-to-end graph.
        web_runtime: As for `web_runtime_files`.
        detector: ``bundled``, ``yunet``, or a file of one of the two networks of free input size.

    Raises:
        InputError: A model has no contract, the detector is another network, or onnxruntime-web can't be had.
        ModelFileError: A model or the detector is no ONNX file, or names weights outside of its folder.
    """
    files = {path.name: path.read_bytes() for path in _SITE.iterdir()}
    names = []
    for index, path in enumerate(models):
        network = load_onnx(path)
        with naming(path):
            contract = read_contract(network)
        if contract is None:
            raise InputError(f"{path}: carries no contract; write it with `pfld-edge convert`")
        file = f"model{index}.onnx"
        files[file] = end_to_end_model(network, contract).SerializeToString()
        names.append({"name": path.name, "file": file})
    files["portrait.jpg"] = (PORTRAITS / "grace_hopper.jpg").read_bytes()
    files["detector.onnx"], settings = _detector(detector)
    page: dict[str, object] = {"models": names, "detector": {"file": "detector.onnx", **settings}}
    # The page computes head pose from the runtime's own shape: there is one copy of it.
    page["pose"] = {"points": list(RIGID_POINTS), "shape": FACE_SHAPE.tolist()}
    files["demo.json"] = json.dumps(page).encode()
    files.update(web_runtime_files(web_runtime))
    for name, data in files.items():
        write_atomically(folder / name, data)


def _detector(name: str | Path) -> tuple[bytes, dict[str, object]]:
    """Read a detector's file, and what the page must know of it, if the page can use it."""
    kind = type(open_detector(name))
    path = detector_path(name)
    given = open_session(path).get_inputs()[0]
    if kind not in (PfldEdgeDetector, YuNet) or any(isinstance(side, int) for side in given.shape[2:]):
        raise InputError(f"{name}: the page needs the bundled detector, or a YuNet file of free input size")
    if kind is PfldEdgeDetector and given.type != "tensor(uint8)":
        raise InputError(f"{name}: the page needs the INT8 file of this detector, which takes pixels")
    return path.read_bytes(), {
        "kind": kind.__name__,
        "dtype": given.type.removeprefix("tensor(").removesuffix(")").replace("float", "float32"),
        "side": kind.largest_side,
        "enlarge": kind is PfldEdgeDetector,
        "score": kind.score_threshold,
        "overlap": kind.nms_threshold,
        "map": asdict(kind.box_map),
    }


def web_runtime_files(source: Path | None = None) -> dict[str, bytes]:
    """Read the files of onnxruntime-web that the page needs: their contents by name.

    They come from the package's ``.tgz``, from a folder with its files (``dist``, or what holds it; taken as it is), or
    from the cache folder, into which npm fetches the package the first time.

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


class PageHandler(SimpleHTTPRequestHandler):
    """Serves files with the headers that WebAssembly with threads needs."""

    extensions_map = {  # noqa: RUF012 - the base class's attribute
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        """Add them."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


def open_server(
    folder: Path, host: str, port: int, handler: type[SimpleHTTPRequestHandler] = PageHandler
) -> ThreadingHTTPServer:
    """Listen at `port`, or at the next of twenty that is free (0: any).

    Raises:
        InputError: The address can't be listened at.
    """
    for candidate in range(port, min(port + 20, 65536)) if port else [0]:
        try:
            return ThreadingHTTPServer((host, candidate), functools.partial(handler, directory=str(folder)))
        except OSError as error:  # noqa: PERF203 - the next port is tried
            if error.errno != errno.EADDRINUSE:
                raise InputError(f"can't listen at {host}:{candidate}: {error.strerror}") from error
    raise InputError(f"the ports from {port} on are taken: give another --port, or 0 for any")
