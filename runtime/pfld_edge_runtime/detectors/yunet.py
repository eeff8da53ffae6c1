"""YuNet: a face detector of 75,000 parameters.

Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 20 (2023). The decoding is
that of OpenCV's ``modules/objdetect/src/face_detect.cpp``: per stride a class score, an objectness and a box relative
to its grid cell.
"""

from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pfld_edge_runtime.detectors.anchors import grid_points
from pfld_edge_runtime.detectors.base import BoxMap
from pfld_edge_runtime.detectors.onnx_detector import Candidates, OnnxDetector

__all__ = ["YuNet"]

_STRIDES = (8, 16, 32)


class YuNet(OnnxDetector):
    """Faces by YuNet (libfacedetection.train, OpenCV zoo): BGR grey levels as they are, small photographs not enlarged.

    It was trained on faces of about 10 to 300 pixels, as the network sees them.
    """

    score_threshold = 0.7
    nms_threshold = 0.3
    largest_side = 640

    # Median over the faces of WFLW's unlabelled photographs, by benchmarks/detector_boxes.py. Faces are even, so
    # nothing moves sideways.
    box_map = BoxMap(shift=(0.0, 0.119), scale=(1.041, 0.781))

    _color = "bgr"
    _mean = 0.0
    _scale = 1.0
    _enlarges = False

    @classmethod
    def reads(cls, session: onnxruntime.InferenceSession) -> bool:
        """Say whether an open model is a YuNet of 2022 or later: ``cls``, ``obj`` and ``bbox`` of three strides."""
        names = {output.name for output in session.get_outputs()}
        wanted = {f"{kind}_{stride}" for kind in ("cls", "obj", "bbox") for stride in _STRIDES}
        return len(session.get_inputs()) == 1 and wanted <= names

    def _decode(self, outputs: Sequence[NDArray[np.float32]], canvas: tuple[int, int]) -> Candidates:
        named = dict(zip((output.name for output in self._session.get_outputs()), outputs, strict=True))
        boxes, scores = [], []
        for stride in _STRIDES:
            classes, objects, cells = (named[f"{kind}_{stride}"][0] for kind in ("cls", "obj", "bbox"))
            centers = cells[:, :2] + grid_points(canvas[0] // stride, canvas[1] // stride)
            half = np.exp(cells[:, 2:]) / 2
            boxes.append(np.concatenate([centers - half, centers + half], axis=1) * np.float32(stride))
            scores.append(np.sqrt(np.clip(classes[:, 0], 0, 1) * np.clip(objects[:, 0], 0, 1)))
        return np.concatenate(boxes), np.concatenate(scores)
