"""The detector networks: pfld-edge's own, YuNet, SCRFD and UltraFace, each as an input normalization and a decoder."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import onnxruntime

from pfld_edge_runtime.arrays import Float32Array
from pfld_edge_runtime.detection.detector import BoxMap
from pfld_edge_runtime.detection.onnx_detector import Letterbox, OnnxDetector

_STRIDES = (8, 16, 32)

# Each `box_map` is the median over the faces of WFLW's unlabelled photographs, by benchmarks/detector_boxes.py. Faces
# are symmetric, so nothing moves sideways.


class PfldEdgeDetector(OnnxDetector):
    """pfld-edge's own detector, whose file comes with the package: BGR, ``(p - 128) / 128``, longer side about 512.

    Per stride a map of 11 channels, one face a cell: score (logit), offset of the box's centre from the cell's, log of
    width and height, and offsets of left eye, right eye and mouth, in strides. The three points give a roll; of the
    bundled file it is only right up to some 40 degrees, and `FaceAnalyzer` finds the roll of others by the landmarks. A
    file with uint8 input takes the pixels as they are.
    """

    score_threshold = 0.6
    nms_threshold = 0.45
    largest_side = 512

    box_map = BoxMap(shift=(0.0, 0.128), scale=(1.041, 0.766))

    _color = "bgr"
    _mean = 128.0
    _scale = 128.0
    _whole_factor = True

    @classmethod
    def reads(cls, session: onnxruntime.InferenceSession) -> bool:
        """See `OnnxDetector`: ``stride8``, ``stride16`` and ``stride32`` of 11 channels."""
        outputs = [(output.name, output.shape[1:2]) for output in session.get_outputs()]
        return outputs == [(f"stride{stride}", [11]) for stride in _STRIDES] and len(session.get_inputs()) == 1

    def _decode(self, outputs: Sequence[Float32Array], canvas: tuple[int, int]) -> Float32Array:  # noqa: ARG002
        with np.errstate(divide="ignore"):
            least = -np.log(1 / np.float64(self._score_threshold) - 1)
        found = []
        for stride, maps in zip(_STRIDES, outputs, strict=True):
            index = np.flatnonzero(maps[0, 0] >= least)
            rows, columns = np.divmod(index, maps.shape[3])
            cells = maps[0].reshape(11, -1)[:, index]
            cells[1:3] += np.stack([columns, rows]) + np.float32(0.5)
            found.append(np.concatenate([cells, np.full((1, len(index)), stride, np.float32)]))
        score, x, y, width, height, *points, strides = np.concatenate(found, axis=1)
        half_width, half_height = np.exp(width) / 2, np.exp(height) / 2
        edges = np.stack([x - half_width, y - half_height, x + half_width, y + half_height]) * strides
        left, right, mouth = np.stack(points[::2]) + 1j * np.stack(points[1::2])
        # The directions from eye to eye and, turned by a quarter, from the eyes to the mouth; see `face_roll`.
        rolls = np.degrees(np.angle(right - left - 1j * (mouth - (left + right) / 2)))
        return np.stack([*edges, 1 / (1 + np.exp(-score)), rolls], axis=1).astype(np.float32)


class YuNet(OnnxDetector):
    """YuNet (libfacedetection.train, OpenCV zoo): BGR 0..255, small photographs not enlarged.

    Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 20 (2023). Decoded as in
    OpenCV's ``modules/objdetect/src/face_detect.cpp``: per stride a class score, an objectness and a box relative to
    its grid cell. Trained on faces of about 10 to 300 pixels, measured in the network's input.
    """

    score_threshold = 0.7
    nms_threshold = 0.3
    largest_side = 640

    box_map = BoxMap(shift=(0.0, 0.119), scale=(1.041, 0.781))

    _color = "bgr"
    _mean = 0.0
    _scale = 1.0
    _enlarge = False

    @classmethod
    def reads(cls, session: onnxruntime.InferenceSession) -> bool:
        """See `OnnxDetector`: ``cls``, ``obj`` and ``bbox`` of three strides, as since 2022."""
        names = {output.name for output in session.get_outputs()}
        wanted = {f"{kind}_{stride}" for kind in ("cls", "obj", "bbox") for stride in _STRIDES}
        return len(session.get_inputs()) == 1 and wanted <= names

    def _decode(self, outputs: Sequence[Float32Array], canvas: tuple[int, int]) -> Float32Array:
        named = dict(zip((output.name for output in self._session.get_outputs()), outputs, strict=True))
        faces = []
        for stride in _STRIDES:
            classes, objects, cells = (named[f"{kind}_{stride}"][0] for kind in ("cls", "obj", "bbox"))
            centers = cells[:, :2] + grid_points(canvas[0] // stride, canvas[1] // stride)
            half = np.exp(cells[:, 2:]) / 2
            boxes = np.concatenate([centers - half, centers + half], axis=1) * np.float32(stride)
            faces.append(np.column_stack([boxes, np.sqrt(np.clip(classes, 0, 1) * np.clip(objects, 0, 1))]))
        return np.concatenate(faces)


class SCRFD(OnnxDetector):
    """SCRFD (InsightFace), 0.5 to 34 GFLOPs: RGB, ``(p - 127.5) / 128``, the photograph scaled to fill the input.

    Guo et al., "Sample and Computation Redistribution for Efficient Face Detection", ICLR 2022. Decoded as in
    InsightFace's ``detection/scrfd/tools/scrfd.py``: per stride scores, and the distances of the four edges from the
    grid point, in strides.

    Where no face is found, the network looks again at the photograph at half that size: it misses faces that fill its
    input (of 60 LFW photographs the 500M file gave a box for 27 at full size, for all 60 in a quarter of the input).

    Files with and without the five key points, of fixed or free input size. InsightFace's own weights are for
    non-commercial research only.
    """

    score_threshold = 0.5
    nms_threshold = 0.4
    largest_side = 640

    # The 500M and the 2.5G file agree.
    box_map = BoxMap(shift=(0.0, 0.12), scale=(1.03, 0.775))

    _color = "rgb"
    _mean = 127.5
    _scale = 128.0
    _look_smaller = True

    @classmethod
    def reads(cls, session: onnxruntime.InferenceSession) -> bool:
        """See `OnnxDetector`: per stride outputs of 1, 4 and perhaps 10 columns."""
        columns = sorted((output.shape[-1] for output in session.get_outputs()), key=str)
        plain, with_points = [1] * 3 + [4] * 3, [1] * 3 + [10] * 3 + [4] * 3
        return len(session.get_inputs()) == 1 and columns in (plain, with_points)

    def _decode(self, outputs: Sequence[Float32Array], canvas: tuple[int, int]) -> Float32Array:
        # Exporters order the outputs by kind or by stride; the finest grid always has the most rows.
        scores, distances = (
            sorted((found.reshape(-1, wanted) for found in outputs if found.shape[-1] == wanted), key=len, reverse=True)
            for wanted in (1, 4)
        )
        faces = []
        for stride, edges, score in zip(_STRIDES, distances, scores, strict=True):
            width, height = canvas[0] // stride, canvas[1] // stride
            points = grid_points(width, height, len(edges) // (width * height))
            boxes = np.concatenate([points - edges[:, :2], points + edges[:, 2:]], axis=1) * np.float32(stride)
            faces.append(np.column_stack([boxes, score]))
        return np.concatenate(faces)


class UltraFace(OnnxDetector):
    """UltraFace: RGB, ``(p - 127) / 128``, every photograph stretched to 320 x 240, whatever its aspect.

    The SSD of "Ultra-Light-Fast-Generic-Face-Detector-1MB" (Linzaer), version-RFB-320 and its siblings. The file
    decodes its own anchor boxes; the rest follows the repository's ``detect_imgs_onnx.py``, with the overlap of
    ``vision/ssd/config/fd_config.py``.
    """

    score_threshold = 0.7
    nms_threshold = 0.3
    largest_side = 320

    box_map = BoxMap(shift=(0.0, 0.132), scale=(1.046, 0.779))

    _color = "rgb"
    _mean = 127.0
    _scale = 128.0

    @classmethod
    def reads(cls, session: onnxruntime.InferenceSession) -> bool:
        """See `OnnxDetector`: one input of fixed size, ``scores`` and ``boxes``."""
        outputs = {output.name: output.shape[-1] for output in session.get_outputs()}
        sides = [side for value in session.get_inputs() for side in value.shape[2:]]
        return outputs == {"scores": 2, "boxes": 4} and all(isinstance(side, int) for side in sides)

    def _letterbox(self, photo: tuple[int, int]) -> Letterbox:
        canvas = self._canvas or (320, 240)
        return Letterbox(photo, canvas, canvas)

    def _decode(self, outputs: Sequence[Float32Array], canvas: tuple[int, int]) -> Float32Array:
        named = dict(zip((output.name for output in self._session.get_outputs()), outputs, strict=True))
        return np.column_stack([named["boxes"][0] * np.array([*canvas, *canvas], np.float32), named["scores"][0, :, 1]])


@lru_cache(maxsize=64)
def grid_points(width: int, height: int, repeats: int = 1) -> Float32Array:
    """Columns and rows of a map's cells, row by row, each repeated: ``(n, 2)`` float32, kept and so read-only."""
    rows, columns = np.divmod(np.arange(width * height), width)
    points = np.stack([columns, rows], axis=1).repeat(repeats, axis=0).astype(np.float32)
    points.flags.writeable = False
    return points
