"""98 facial landmarks on devices, with numpy and onnxruntime alone."""

from pfld_edge_runtime.contract import CONTRACT_KEY, Contract, CropRule
from pfld_edge_runtime.crop import CropWindows, crop_faces, crop_windows
from pfld_edge_runtime.detectors import BoxMap, Detector, FaceDetector, find_boxes
from pfld_edge_runtime.devices import DEVICES, DeviceWarning
from pfld_edge_runtime.errors import (
    BoxError,
    DeviceError,
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
from pfld_edge_runtime.faces import Faces
from pfld_edge_runtime.fingerprint import Fingerprint, fingerprint_image
from pfld_edge_runtime.landmarker import BUNDLED_MODEL, FaceLandmarker, prepare_input
from pfld_edge_runtime.read_faces import read_faces
from pfld_edge_runtime.reading import (
    ARCFACE_POINTS,
    BUNDLED_CURVE,
    FIVE_POINTS,
    IBUG_68,
    ConfidenceCurve,
    HeadPose,
    aligned_face,
    aligned_faces,
    bounding_boxes,
    default_camera,
    eye_openness,
    five_points,
    head_pose,
    landmark_confidence,
    landmarks_68,
    mirror_disagreement,
    mouth_openness,
    predict_with_mirror,
)
from pfld_edge_runtime.schemes import WFLW_98, LandmarkScheme
from pfld_edge_runtime.self_test import SelfTest, self_test
from pfld_edge_runtime.tracking import FaceSmoother, FaceTracker, Landmarker, OneEuro, OneEuroFilter, Smoothing

__all__ = [
    "ARCFACE_POINTS",
    "BUNDLED_CURVE",
    "BUNDLED_MODEL",
    "CONTRACT_KEY",
    "DEVICES",
    "FIVE_POINTS",
    "IBUG_68",
    "WFLW_98",
    "BoxError",
    "BoxMap",
    "ConfidenceCurve",
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
    "HeadPose",
    "ImageError",
    "LandmarkError",
    "LandmarkScheme",
    "Landmarker",
    "MissingPackageError",
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
    "aligned_face",
    "aligned_faces",
    "bounding_boxes",
    "crop_faces",
    "crop_windows",
    "default_camera",
    "eye_openness",
    "find_boxes",
    "fingerprint_image",
    "five_points",
    "head_pose",
    "landmark_confidence",
    "landmarks_68",
    "mirror_disagreement",
    "mouth_openness",
    "predict_with_mirror",
    "prepare_input",
    "read_faces",
    "self_test",
]

__version__ = "0.1.0"
