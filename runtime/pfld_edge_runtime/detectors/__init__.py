"""Face detectors: where the faces of a photograph are."""

from pfld_edge_runtime.detectors.base import BoxMap, Detector, FaceDetector, find_boxes

__all__ = ["BoxMap", "Detector", "FaceDetector", "find_boxes"]
