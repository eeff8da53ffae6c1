"""98 facial landmarks on devices, with numpy and onnxruntime alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pfld_edge_runtime.contract import (
    CONTRACT_KEY,
    FIVE_POINTS,
    IBUG_68,
    WFLW_98,
    ConfidenceCurve,
    Contract,
    CropRule,
    Fingerprint,
    LandmarkScheme,
    fingerprint_image,
)
from pfld_edge_runtime.crop import CropWindows, crop_faces, crop_windows
from pfld_edge_runtime.errors import (
    BoxError,
    DetectorError,
    DeviceError,
    DownloadError,
    ImageError,
    LandmarkError,
    MissingPackageError,
    ModelContractError,
    ModelFileError,
    PfldEdgeError,
    SmoothingError,
    TimestampError,
    TrackerError,
)
from pfld_edge_runtime.landmark_model import BUNDLED_MODEL, FAST_MODEL, FaceLandmarker, LandmarkModel, prepare_input
from pfld_edge_runtime.session import DEVICES, DeviceWarning

if TYPE_CHECKING:
    from pfld_edge_runtime.analyzer import FaceAnalyzer, read_faces
    from pfld_edge_runtime.detection import *
    from pfld_edge_runtime.device_check import SelfTest, self_test
    from pfld_edge_runtime.faces import Faces
    from pfld_edge_runtime.geometry import *
    from pfld_edge_runtime.tracking import *

__all__ = [
    "ARCFACE_POINTS",
    "BUNDLED_DETECTOR",
    "BUNDLED_MODEL",
    "CONTRACT_KEY",
    "DETECTOR_FILES",
    "DEVICES",
    "FAST_MODEL",
    "FIVE_POINTS",
    "IBUG_68",
    "SCRFD",
    "WFLW_98",
    "BoxError",
    "BoxMap",
    "ConfidenceCurve",
    "Contract",
    "CropRule",
    "CropWindows",
    "Detector",
    "DetectorError",
    "DeviceError",
    "DeviceWarning",
    "DownloadError",
    "FaceAnalyzer",
    "FaceDetector",
    "FaceLandmarker",
    "FaceSmoother",
    "FaceTracker",
    "Faces",
    "Fingerprint",
    "HeadPose",
    "ImageError",
    "LandmarkError",
    "LandmarkModel",
    "LandmarkScheme",
    "Landmarker",
    "MissingPackageError",
    "ModelContractError",
    "ModelFileError",
    "OneEuro",
    "OneEuroFilter",
    "PfldEdgeDetector",
    "PfldEdgeError",
    "SelfTest",
    "Smoothing",
    "SmoothingError",
    "TimestampError",
    "TrackerError",
    "UltraFace",
    "YuNet",
    "__version__",
    "aligned_face",
    "aligned_faces",
    "crop_faces",
    "crop_windows",
    "default_camera",
    "detector_folder",
    "download_detector",
    "eye_openness",
    "find_boxes",
    "fingerprint_image",
    "five_points",
    "head_pose",
    "landmark_confidence",
    "landmarks_68",
    "mirror_disagreement",
    "mouth_openness",
    "open_detector",
    "predict_with_mirror",
    "prepare_input",
    "read_faces",
    "self_test",
    "tight_box",
]

__version__ = "0.1.0"

# These modules are imported when one of their names is first used, so that landmarks alone load quickly. None is named
# as something in it, or importing the one would hide the other.
_LATER = {
    "analyzer": "FaceAnalyzer read_faces",
    "detection": (
        "BUNDLED_DETECTOR DETECTOR_FILES SCRFD BoxMap Detector FaceDetector PfldEdgeDetector UltraFace YuNet "
        "detector_folder download_detector find_boxes open_detector"
    ),
    "device_check": "SelfTest self_test",
    "faces": "Faces",
    "geometry": (
        "ARCFACE_POINTS HeadPose aligned_face aligned_faces default_camera eye_openness five_points head_pose "
        "landmark_confidence landmarks_68 mirror_disagreement mouth_openness predict_with_mirror tight_box"
    ),
    "tracking": "FaceSmoother FaceTracker Landmarker OneEuro OneEuroFilter Smoothing",
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _LATER.items() for name in names.split()}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Import what lives in a module of `_LATER`."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, imported or not."""
    return sorted({*globals(), *__all__})
