"""Detector files: the bundled one, the published ones and their download, and `open_detector`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pfld_edge_runtime.detection.architectures import SCRFD, PfldEdgeDetector, UltraFace, YuNet
from pfld_edge_runtime.detection.detector import Detector
from pfld_edge_runtime.detection.onnx_detector import OnnxDetector
from pfld_edge_runtime.errors import DetectorError, DownloadError, ModelFileError
from pfld_edge_runtime.session import open_session

_CHUNK = 1 << 16
_BUNDLED = "bundled"
_ARCHITECTURES: tuple[type[OnnxDetector], ...] = (PfldEdgeDetector, YuNet, SCRFD, UltraFace)

BUNDLED_DETECTOR = Path(__file__).parents[1] / "models" / "face-detector.int8.onnx"
"""The INT8 face detector that comes with the package; its name is ``bundled``."""


@dataclass(frozen=True, slots=True)
class DetectorFile:
    """One published file: what `open_detector` calls it, its own name, address, contents and terms."""

    name: str
    file: str
    url: str
    sha256: str
    size: int
    license: str

    def path(self, folder: Path | None = None) -> Path:
        """Where it lies once downloaded: in `folder`, or in `detector_folder()`."""
        return (folder or detector_folder()) / self.file


_RAW = "https://raw.githubusercontent.com"
_SCRFD = f"{_RAW}/hpc203/scrfd-opencv/9e14b462707fe75105c99213fba911646366aebd/weights"

_FILES = (
    DetectorFile(
        "yunet",
        "yunet_n_dynamic.onnx",
        f"{_RAW}/ShiqiYu/libfacedetection.train/dca340aa082c71081a68d17db8e58b33a58a914b/onnx/yunet_n_dynamic.onnx",
        "104ee26c71d5c270ce79a6b3dced91c91013260d29a6bf18f9296c5b8c4c2b12",
        322_906,
        "Apache-2.0 or BSD (see its repository)",
    ),
    DetectorFile(
        "scrfd",
        "scrfd_500m_kps.onnx",
        f"{_SCRFD}/scrfd_500m_kps.onnx",
        "517cb1980c72422e676738fc45431700fb7cbee56d0f825b623ee427b3e5ce58",
        2_524_095,
        "non-commercial research only (InsightFace)",
    ),
    DetectorFile(
        "scrfd-2.5g",
        "scrfd_2.5g_kps.onnx",
        f"{_SCRFD}/scrfd_2.5g_kps.onnx",
        "32d20c77b9e2dc1d07e94c2ab9d25bdd5cd05eddbe0b46e7b38e7a1eca22e99a",
        3_291_017,
        "non-commercial research only (InsightFace)",
    ),
    DetectorFile(
        "ultraface",
        "version-RFB-320.onnx",
        f"{_RAW}/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB/dffdddda9794a50607cba8f318507a28c1c27cab"
        "/models/onnx/version-RFB-320.onnx",
        "34cd7e60aeff28744c657de7a3dc64e872d506741de66987f3426f2b79f88017",
        1_270_727,
        "MIT",
    ),
)

DETECTOR_FILES: dict[str, DetectorFile] = {entry.name: entry for entry in _FILES}
"""The files by name."""


def named_file(name: str) -> DetectorFile:
    """Look up a published file's name; a `DetectorError` says that there is none of that name."""
    if name == _BUNDLED:
        raise DetectorError("the bundled detector comes with pfld-edge-runtime: there is nothing to download")
    if name not in DETECTOR_FILES:
        raise DetectorError(f"unknown detector {name!r}; known: {_names()}, or the path of an ONNX file")
    return DETECTOR_FILES[name]


def _names() -> str:
    return ", ".join((_BUNDLED, *DETECTOR_FILES))


def open_detector(
    name: str | Path | None = None,
    score_threshold: float | None = None,
    nms_threshold: float | None = None,
    largest_side: int | None = None,
    max_faces: int | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> OnnxDetector:
    """Open a detector. It never downloads; `download_detector` does.

    `name` is None or ``bundled`` for the bundled detector; ``yunet``, ``scrfd``, ``scrfd-2.5g`` or ``ultraface`` from
    the cache folder; or the path of an ONNX file, whose architecture is recognized by its inputs and outputs. The other
    arguments are those of `OnnxDetector`.

    Raises:
        DetectorError: The name is unknown, the named file isn't downloaded or is damaged, or a setting is out of range.
        ModelFileError: The file is missing, not an ONNX model, or none of the networks known here.
        DeviceError: The device is unknown or unavailable.
    """
    path = detector_path(name)
    session = open_session(path, device, threads)
    for architecture in _ARCHITECTURES:
        if architecture.reads(session):
            settings = score_threshold, nms_threshold, largest_side, max_faces
            detector = architecture(session, *settings)
            detector._reopen = partial(open_detector, path.absolute(), *settings, device, threads)
            return detector
    kinds = ", ".join(architecture.__name__ for architecture in _ARCHITECTURES)
    raise ModelFileError(
        f"{path} is not a detector of a kind known here ({kinds}): pass a callable of your own instead"
    )


def as_detector(detector: Detector | str | Path | None) -> Detector:
    """Open what `open_detector` takes, and leave a callable as it is; a `DetectorError` says that it is neither."""
    if detector is None or isinstance(detector, str | Path):
        return open_detector(detector)
    if not callable(detector) or isinstance(detector, type):
        raise DetectorError(f"a detector is {_names()}, the path of an ONNX file, or a callable; found {detector!r}")
    return detector


def detector_path(name: str | Path | None) -> Path:
    """Where the file lies that `open_detector` opens under a name; raises DetectorError as it does."""
    # A file in the working folder that happens to be called `yunet` doesn't shadow the name.
    if name is None or name == _BUNDLED:
        return BUNDLED_DETECTOR
    if not isinstance(name, str | Path):
        raise DetectorError(f"a detector is {_names()}, or the path of an ONNX file; found {type(name).__name__}")
    path = Path(name)
    if name not in DETECTOR_FILES and (path.suffix or path.is_file() or isinstance(name, Path)):
        return path
    entry = named_file(str(name))
    cached = entry.path()
    if not cached.is_file():
        raise DetectorError(
            f"the detector {entry.name!r} isn't here yet: run `pfld-edge detector download {entry.name}` or call "
            f"download_detector({entry.name!r}), or put {entry.url} at {cached}"
        )
    if not is_intact(entry, cached):
        raise DetectorError(f"{cached} is not the published {entry.file}: download it again")
    return cached


def download_detector(
    name: str, folder: Path | None = None, advance: Callable[[int], object] | None = None, timeout: float = 30.0
) -> Path:
    """Download a detector by its name, unless its file is there already, and give the file's path.

    `folder` is where to put it, None for the cache folder, where `open_detector` looks; `advance` is called with the
    number of bytes of each part that came; `timeout` are the seconds that the server may stay silent.

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
    return path.is_file() and _sha256(path.read_bytes()) == entry.sha256


def _sha256(content: bytes) -> str:
    import hashlib  # OpenSSL takes milliseconds to load, and few callers ask

    return hashlib.sha256(content).hexdigest()


def _fetch(entry: DetectorFile, path: Path, advance: Callable[[int], object], timeout: float) -> bytes:
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
    found = _sha256(data)
    if found != entry.sha256:
        raise DownloadError(
            f"{entry.url} gave another file than was published ({len(data)} of {entry.size} bytes, SHA-256 "
            f"{found[:12]}..., not {entry.sha256[:12]}...): nothing was kept; put the published file at {path}"
        )
    return data


def detector_folder() -> Path:
    """The folder of downloaded detectors: ``$XDG_CACHE_HOME/pfld-edge/detectors``, by default under ``~/.cache``."""
    return cache_folder() / "detectors"


def cache_folder() -> Path:
    """pfld-edge's cache folder; a relative ``XDG_CACHE_HOME`` is ignored, as the XDG specification has it."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "pfld-edge"
