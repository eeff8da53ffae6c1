"""Opens a detector by name or by file."""

from pathlib import Path

from pfld_edge_runtime.detectors.catalogue import DETECTOR_FILES, named_file
from pfld_edge_runtime.detectors.download import is_intact
from pfld_edge_runtime.detectors.errors import DetectorError
from pfld_edge_runtime.detectors.onnx_detector import OnnxDetector
from pfld_edge_runtime.detectors.scrfd import SCRFD
from pfld_edge_runtime.detectors.ultraface import UltraFace
from pfld_edge_runtime.detectors.yunet import YuNet
from pfld_edge_runtime.errors import ModelFileError
from pfld_edge_runtime.session import open_session

__all__ = ["open_detector"]

_KINDS: tuple[type[OnnxDetector], ...] = (YuNet, SCRFD, UltraFace)


def open_detector(
    name: str | Path,
    score_threshold: float | None = None,
    nms_threshold: float | None = None,
    largest_side: int | None = None,
    max_faces: int | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> OnnxDetector:
    """Open a detector. Nothing is ever downloaded: `download_detector` does that.

    Args:
        name: ``yunet``, ``scrfd``, ``scrfd-2.5g`` or ``ultraface`` from the cache folder, or the path of an ONNX file;
            which network a file holds is read off it.
        score_threshold: As for `YuNet`; likewise the rest.
        nms_threshold: Largest intersection over union of two faces.
        largest_side: Longer side in pixels at which the network sees a photograph.
        max_faces: Give only so many faces, the best.
        device: ``cpu``, ``cuda`` or ``auto``.
        threads: Threads of one call.

    Raises:
        DetectorError: The name is unknown, the named file isn't downloaded or is damaged, or a setting is out of range.
        ModelFileError: The file is missing, not an ONNX model, or none of the networks above.
        DeviceError: The device is unknown or unavailable.
    """
    path = _file(name)
    session = open_session(path, device, threads)
    for kind in _KINDS:
        if kind.reads(session):
            return kind(session, score_threshold, nms_threshold, largest_side, max_faces)
    kinds = ", ".join(kind.__name__ for kind in _KINDS)
    raise ModelFileError(
        f"{path} is not a detector of a kind known here ({kinds}): pass a callable of your own instead"
    )


def _file(name: str | Path) -> Path:
    """Find the file that is meant."""
    path = Path(name)
    # A file in the working folder that happens to be called `yunet` doesn't shadow the name.
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
