"""98 facial landmarks on devices, with numpy and onnxruntime alone."""

from pfld_edge_runtime.contract import CONTRACT_KEY, Contract, CropRule
from pfld_edge_runtime.crop import CropWindows, crop_faces, crop_windows
from pfld_edge_runtime.detectors import BoxMap, Detector, FaceDetector, find_boxes
from pfld_edge_runtime.devices import DEVICES, DeviceWarning
from pfld_edge_runtime.errors import (
    BoxError,
    DeviceError,
    ImageError,
    ModelContractError,
    ModelFileError,
    PfldEdgeError,
    SmoothingError,
    TimestampError,
    TrackerError,
)
from pfld_edge_runtime.faces import Faces
from pfld_edge_runtime.fingerprint import Fingerprint, fingerprint_image
from pfld_edge_runtime.landmarker import BUNDLED_MODEL, FaceLandmarker, prepare_input
from pfld_edge_runtime.schemes import WFLW_98, LandmarkScheme
from pfld_edge_runtime.self_test import SelfTest, self_test
from pfld_edge_runtime.tracking import FaceSmoother, FaceTracker, Landmarker, OneEuro, OneEuroFilter, Smoothing

__all__ = [
    "BUNDLED_MODEL",
    "CONTRACT_KEY",
    "DEVICES",
    "WFLW_98",
    "BoxError",
    "BoxMap",
    "Contract",
    "CropRule",
    "CropWindows",
    "Detector",
    "DeviceError",
    "DeviceWarning",
    "FaceDetector",
    "FaceLandmarker",
    "FaceSmoother",
    "FaceTracker",
    "Faces",
    "Fingerprint",
    "ImageError",
    "LandmarkScheme",
    "Landmarker",
    "ModelContractError",
    "ModelFileError",
    "OneEuro",
    "OneEuroFilter",
    "PfldEdgeError",
    "SelfTest",
    "Smoothing",
    "SmoothingError",
    "TimestampError",
    "TrackerError",
    "__version__",
    "crop_faces",
    "crop_windows",
    "find_boxes",
    "fingerprint_image",
    "prepare_input",
    "self_test",
]

__version__ = "0.1.0"
