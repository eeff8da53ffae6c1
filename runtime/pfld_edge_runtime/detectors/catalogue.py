"""The published detector files that can be asked for by name: where they come from and how to know them."""

from dataclasses import dataclass
from pathlib import Path

from pfld_edge_runtime.cache_folder import cache_folder
from pfld_edge_runtime.detectors.errors import DetectorError

__all__ = ["DETECTOR_FILES", "DetectorFile", "detector_folder", "named_file"]


@dataclass(frozen=True, slots=True)
class DetectorFile:
    """One published file.

    Attributes:
        name: What `open_detector` and ``pfld-edge detector download`` call it.
        file: Its own name.
        url: Public address, pinned to a commit.
        sha256: Of its contents, in hex.
        size: In bytes.
        license: Terms of its authors, in short.
    """

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
    """Look a name up.

    Raises:
        DetectorError: There is no detector of that name.
    """
    if name not in DETECTOR_FILES:
        known = ", ".join(DETECTOR_FILES)
        raise DetectorError(f"unknown detector {name!r}; known: {known}, or the path of an ONNX file")
    return DETECTOR_FILES[name]


def detector_folder() -> Path:
    """The folder of downloaded detectors: ``$XDG_CACHE_HOME/pfld-edge/detectors``, by default under ``~/.cache``."""
    return cache_folder() / "detectors"
