"""Face detectors: where the faces of a photograph are."""

from pfld_edge_runtime.detectors.base import Detector, FaceDetector, find_boxes
from pfld_edge_runtime.detectors.box_map import BoxMap, scheme_box_map
from pfld_edge_runtime.detectors.catalogue import DETECTOR_FILES, DetectorFile, detector_folder, named_file
from pfld_edge_runtime.detectors.download import download_detector, is_intact
from pfld_edge_runtime.detectors.errors import DetectorError, DownloadError
from pfld_edge_runtime.detectors.onnx_detector import OnnxDetector
from pfld_edge_runtime.detectors.opening import open_detector
from pfld_edge_runtime.detectors.scrfd import SCRFD
from pfld_edge_runtime.detectors.ultraface import UltraFace
from pfld_edge_runtime.detectors.yunet import YuNet

__all__ = [
    "DETECTOR_FILES",
    "SCRFD",
    "BoxMap",
    "Detector",
    "DetectorError",
    "DetectorFile",
    "DownloadError",
    "FaceDetector",
    "OnnxDetector",
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
