"""98 facial landmarks on devices, with numpy and onnxruntime alone."""

from pfld_edge_runtime.analyzer import FaceAnalyzer
from pfld_edge_runtime.contract import CONTRACT_KEY, Contract, CropRule
from pfld_edge_runtime.crop import CropWindows, crop_faces, crop_windows
from pfld_edge_runtime.detectors import (
    DETECTOR_FILES,
    SCRFD,
    BoxMap,
    Detector,
    DetectorError,
    DownloadError,
    FaceDetector,
    UltraFace,
    YuNet,
    detector_folder,
    download_detector,
    find_boxes,
    open_detector,
)
from pfld_edge_runtime.errors import (
    BoxError,
    DeviceError,
    ImageError,
    ModelContractError,
    ModelFileError,
    PfldEdgeError,
)
from pfld_edge_runtime.faces import Faces
from pfld_edge_runtime.fingerprint import Fingerprint, fingerprint_image
from pfld_edge_runtime.landmarker import BUNDLED_MODEL, FaceLandmarker, prepare_input
from pfld_edge_runtime.schemes import WFLW_98, LandmarkScheme

__all__ = [
    "BUNDLED_MODEL",
    "CONTRACT_KEY",
    "DETECTOR_FILES",
    "SCRFD",
    "WFLW_98",
    "BoxError",
    "BoxMap",
    "Contract",
    "CropRule",
    "CropWindows",
    "Detector",
    "DetectorError",
    "DeviceError",
    "DownloadError",
    "FaceAnalyzer",
    "FaceDetector",
    "FaceLandmarker",
    "Faces",
    "Fingerprint",
    "ImageError",
    "LandmarkScheme",
    "ModelContractError",
    "ModelFileError",
    "PfldEdgeError",
    "UltraFace",
    "YuNet",
    "__version__",
    "crop_faces",
    "crop_windows",
    "detector_folder",
    "download_detector",
    "find_boxes",
    "fingerprint_image",
    "open_detector",
    "prepare_input",
]

__version__ = "0.1.0"
