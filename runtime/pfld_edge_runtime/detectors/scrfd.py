"""SCRFD: face detectors from 0.5 to 34 GFLOPs.

Guo et al., "Sample and Computation Redistribution for Efficient Face Detection", ICLR 2022. The decoding follows
InsightFace's ``detection/scrfd/tools/scrfd.py``: per stride scores, and the distances of the four edges from the grid
point, in strides.
"""

from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pfld_edge_runtime.detectors.anchors import grid_points
from pfld_edge_runtime.detectors.base import BoxMap
from pfld_edge_runtime.detectors.onnx_detector import Candidates, OnnxDetector

__all__ = ["SCRFD"]

_STRIDES = (8, 16, 32)


class SCRFD(OnnxDetector):
    """Faces by SCRFD (InsightFace): RGB, ``(p - 127.5) / 128``, the photograph scaled to fill the input.

    Files with and without the five key points, of fixed or free input size. InsightFace's own weights are for
    non-commercial research only.
    """

    score_threshold = 0.5
    nms_threshold = 0.4
    largest_side = 640

    # Median over the faces of WFLW's unlabelled photographs, by benchmarks/detector_boxes.py; the 500M and the 2.5G
    # file agree. Faces are even, so nothing moves sideways.
    box_map = BoxMap(shift=(0.0, 0.12), scale=(1.03, 0.775))

    _color = "rgb"
    _mean = 127.5
    _scale = 128.0
    _enlarges = True

    @classmethod
    def reads(cls, session: onnxruntime.InferenceSession) -> bool:
        """Say whether an open model is an SCRFD: per stride outputs of 1, 4 and perhaps 10 columns."""
        columns = sorted(_columns(session), key=str)
        plain, with_points = [1] * 3 + [4] * 3, [1] * 3 + [10] * 3 + [4] * 3
        return len(session.get_inputs()) == 1 and columns in (plain, with_points)

    def _decode(self, outputs: Sequence[NDArray[np.float32]], canvas: tuple[int, int]) -> Candidates:
        widths = _columns(self._session)
        # Exporters order the outputs by kind or by stride; the finest grid always has the most rows.
        scores, distances = (
            sorted(
                (found.reshape(-1, wanted) for found, width in zip(outputs, widths, strict=True) if width == wanted),
                key=len,
                reverse=True,
            )
            for wanted in (1, 4)
        )
        boxes = []
        for stride, edges in zip(_STRIDES, distances, strict=True):
            width, height = canvas[0] // stride, canvas[1] // stride
            points = grid_points(width, height, len(edges) // (width * height))
            boxes.append(np.concatenate([points - edges[:, :2], points + edges[:, 2:]], axis=1) * np.float32(stride))
        return np.concatenate(boxes), np.concatenate(scores)[:, 0]


def _columns(session: onnxruntime.InferenceSession) -> list[object]:
    """Last dimension of every output."""
    return [output.shape[-1] for output in session.get_outputs()]
