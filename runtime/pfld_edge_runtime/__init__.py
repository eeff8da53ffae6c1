"""98 facial landmarks on devices, with numpy and onnxruntime alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfld_edge_runtime.analyzer import *
    from pfld_edge_runtime.contract import *
    from pfld_edge_runtime.crop import *
    from pfld_edge_runtime.detection.architectures import *
    from pfld_edge_runtime.detection.catalogue import *
    from pfld_edge_runtime.detection.detector import *
    from pfld_edge_runtime.device_check import *
    from pfld_edge_runtime.errors import *
    from pfld_edge_runtime.faces import *
    from pfld_edge_runtime.geometry.confidence import *
    from pfld_edge_runtime.geometry.landmarks import *
    from pfld_edge_runtime.geometry.pose import *
    from pfld_edge_runtime.geometry.wflw_points import *
    from pfld_edge_runtime.landmark_model import *
    from pfld_edge_runtime.session import *
    from pfld_edge_runtime.tracking.smoothing import *
    from pfld_edge_runtime.tracking.tracker import *

__version__ = "0.1.0"

# Each module is imported when one of its names is first used, so that landmarks alone load quickly. None is named as
# something in it, or importing the one would hide the other.
_PUBLIC = {
    "analyzer": "FaceAnalyzer read_faces",
    "contract": (
        "CONTRACT_KEY FIVE_POINTS IBUG_68 WFLW_98 ConfidenceCurve Contract CropRule Fingerprint LandmarkScheme "
        "fingerprint_image"
    ),
    "crop": "CropWindows crop_faces crop_windows",
    "detection.architectures": "SCRFD PfldEdgeDetector UltraFace YuNet",
    "detection.catalogue": "BUNDLED_DETECTOR DETECTOR_FILES detector_folder download_detector open_detector",
    "detection.detector": "BoxMap Detector FaceDetector find_boxes",
    "device_check": "SelfTest self_test",
    "errors": (
        "BoxError DetectorError DeviceError DownloadError ImageError LandmarkError MissingPackageError "
        "ModelContractError ModelFileError PfldEdgeError SmoothingError TimestampError TrackerError"
    ),
    "faces": "Faces",
    "geometry.confidence": "landmark_confidence mirror_disagreement predict_with_mirror",
    "geometry.landmarks": "tight_box",
    "geometry.pose": "HeadPose default_camera head_pose",
    "geometry.wflw_points": (
        "ARCFACE_POINTS aligned_face aligned_faces eye_openness five_points landmarks_68 mouth_openness"
    ),
    "landmark_model": "BUNDLED_MODEL FAST_MODEL FaceLandmarker LandmarkModel prepare_input",
    "session": "DEVICES DeviceWarning",
    "tracking.smoothing": "FaceSmoother OneEuro OneEuroFilter Smoothing",
    "tracking.tracker": "FaceTracker Landmarker",
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _PUBLIC.items() for name in names.split()}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Import what lives in a module of `_PUBLIC`."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, imported or not."""
    return sorted({*globals(), *__all__})
