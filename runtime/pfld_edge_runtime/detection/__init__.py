"""Face detection: the detector interface, published detectors, and their files."""

from pfld_edge_runtime.detection.architectures import SCRFD, PfldEdgeDetector, UltraFace, YuNet
from pfld_edge_runtime.detection.catalogue import (
    BUNDLED_DETECTOR,
    DETECTOR_FILES,
    DetectorFile,
    detector_folder,
    download_detector,
    is_intact,
    named_file,
    open_detector,
)
from pfld_edge_runtime.detection.detector import BoxMap, Detector, FaceDetector, find_boxes, scheme_box_map
from pfld_edge_runtime.detection.onnx_detector import OnnxDetector

__all__ = [
    "BUNDLED_DETECTOR",
    "DETECTOR_FILES",
    "SCRFD",
    "BoxMap",
    "Detector",
    "DetectorFile",
    "FaceDetector",
    "OnnxDetector",
    "PfldEdgeDetector",
    "UltraFace",
    "YuNet",
    "detector_folder",
    "download_detector",
    "find_boxes",
    "is_intact",
    "named_file",
    "open_detector",
    "scheme_box_map",
]
