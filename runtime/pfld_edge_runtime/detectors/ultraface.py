"""UltraFace: the SSD of "Ultra-Light-Fast-Generic-Face-Detector-1MB" (Linzaer), version-RFB-320 and its siblings.

The file decodes its own anchor boxes; what is left follows the repository's ``detect_imgs_onnx.py``, with the overlap
of ``vision/ssd/config/fd_config.py``.
"""

from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pfld_edge_runtime.detectors.base import BoxMap
from pfld_edge_runtime.detectors.letterbox import Letterbox
from pfld_edge_runtime.detectors.onnx_detector import Candidates, OnnxDetector

__all__ = ["UltraFace"]


class UltraFace(OnnxDetector):
    """Faces by UltraFace: RGB, ``(p - 127) / 128``, every photograph stretched to 320 x 240, whatever its aspect."""

    score_threshold = 0.7
    nms_threshold = 0.3
    largest_side = 320

    # Median over the faces of WFLW's unlabelled photographs, by benchmarks/detector_boxes.py. Faces are even, so
    # nothing moves sideways.
    box_map = BoxMap(shift=(0.0, 0.132), scale=(1.046, 0.779))

    _color = "rgb"
    _mean = 127.0
    _scale = 128.0
    _enlarges = True

    @classmethod
    def reads(cls, session: onnxruntime.InferenceSession) -> bool:
        """Say whether an open model is an UltraFace: one input of fixed size, ``scores`` and ``boxes``."""
        outputs = {output.name: output.shape[-1] for output in session.get_outputs()}
        sides = session.get_inputs()[0].shape[2:]
        return outputs == {"scores": 2, "boxes": 4} and all(isinstance(side, int) for side in sides)

    def _letterbox(self, photo: tuple[int, int]) -> Letterbox:
        canvas = self._canvas or (320, 240)
        return Letterbox(photo, canvas, canvas)

    def _decode(self, outputs: Sequence[NDArray[np.float32]], canvas: tuple[int, int]) -> Candidates:
        named = dict(zip((output.name for output in self._session.get_outputs()), outputs, strict=True))
        return named["boxes"][0] * np.array([*canvas, *canvas], np.float32), named["scores"][0, :, 1]
