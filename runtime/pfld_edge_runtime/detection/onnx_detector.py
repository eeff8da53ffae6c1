"""What the ONNX detectors share: letterbox input, score threshold, non-maximum suppression."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float32Array, Float64Array, Int64Array, Uint8Array
from pfld_edge_runtime.crop import check_image, resize
from pfld_edge_runtime.detection.detector import FaceDetector
from pfld_edge_runtime.errors import DetectorError, ModelFileError, check_counts, is_number
from pfld_edge_runtime.session import absolute, open_session

_MAX_CANDIDATES = 5000  # the best boxes that enter non-maximum suppression, as in OpenCV's FaceDetectorYN
_WHOLE_FACTOR_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Letterbox:
    """The place of a photograph in a detector's input. Sizes are width, height in pixels.

    Attributes:
        photo: Size of the part of the photograph that is seen, from its top left corner.
        inner: Size at which that lies in the input's top left corner.
        canvas: Size of the input.
    """

    photo: tuple[int, int]
    inner: tuple[int, int]
    canvas: tuple[int, int]

    @classmethod
    def inside(cls, photo: tuple[int, int], canvas: tuple[int, int], *, enlarge: bool) -> "Letterbox":
        """Fit a photograph into an input of fixed size, aspect kept; `enlarge` small photographs too, or leave them."""
        scale = min(canvas[0] / photo[0], canvas[1] / photo[1])
        return cls(photo, _scaled(photo, scale if enlarge else min(scale, 1.0)), canvas)

    @classmethod
    def within(
        cls, photo: tuple[int, int], largest_side: int, multiple: int, *, enlarge: bool, whole: bool = False
    ) -> "Letterbox":
        """Choose an input, its sides a multiple of so many pixels, that shows a photograph at some longer side.

        With `whole` it is shrunk by a whole factor, several times faster, where that leaves the longer side within a
        tenth of `largest_side`; fewer pixels than the factor are cut off on the right and below.
        """
        factor = round(max(photo) / largest_side)
        within_tolerance = abs(max(photo) - factor * largest_side) <= _WHOLE_FACTOR_TOLERANCE * factor * largest_side
        if whole and 1 <= factor <= min(photo) and within_tolerance:
            inner = photo[0] // factor, photo[1] // factor
            photo = inner[0] * factor, inner[1] * factor
        else:
            scale = largest_side / max(photo)
            inner = _scaled(photo, scale if enlarge else min(scale, 1.0))
        width, height = (-(-side // multiple) * multiple for side in inner)
        return cls(photo, inner, (width, height))

    def to_image(self, boxes: NDArray[np.floating]) -> Float64Array:
        """Map ``(N, 4)`` boxes from pixels of the input to pixels of the photograph."""
        scale = np.array(self.photo, np.float64) / self.inner
        placed: Float64Array = boxes.astype(np.float64) * np.tile(scale, 2)
        return placed

    def sample(self, image: object, *, swap_channels: bool) -> Uint8Array:
        """Resize a photograph into the input: bilinear without antialiasing, top left, black beside and below.

        The published detectors were trained and measured with ``cv2.resize``'s ``INTER_LINEAR``, which `resize` equals.
        Gives ``(3, height, width)`` uint8 of the canvas, grey repeated over the channels.
        """
        width, height = self.inner
        levels = resize(check_image(image)[: self.photo[1], : self.photo[0]], width, height)
        canvas = np.zeros((3, self.canvas[1], self.canvas[0]), np.uint8)
        canvas[:, :height, :width] = levels[:: -1 if swap_channels else 1]
        return canvas


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


class OnnxDetector(FaceDetector):
    """A face detector in an ONNX file. Thread-safe: a call keeps nothing in the object.

    Can be pickled, for other processes, unless it was made of an open session: the copy opens its file again.

    Attributes:
        score_threshold: The default of the argument; likewise the next two.
        nms_threshold: Largest intersection over union of two faces.
        largest_side: Longer side at which a network of free input size sees a photograph, in pixels.
    """

    score_threshold: ClassVar[float]
    nms_threshold: ClassVar[float]
    largest_side: ClassVar[int]

    _color: ClassVar[str]
    _mean: ClassVar[float]
    _scale: ClassVar[float]
    _enlarge: ClassVar[bool] = True
    _multiple: ClassVar[int] = 32
    _whole_factor: ClassVar[bool] = False  # see `Letterbox.within`
    _look_smaller: ClassVar[bool] = False  # look again at half the size where no face was found

    def __init__(
        self,
        model: str | Path | bytes | onnxruntime.InferenceSession,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        largest_side: int | None = None,
        max_faces: int | None = None,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        """Open a detector's file.

        Args:
            model: The ONNX file, its bytes, or an open session (`device` and `threads` are then its own).
            score_threshold: Least score of a face, 0..1; None for the network's usual one.
            nms_threshold: Largest intersection over union of two faces, 0..1; None for the network's usual one.
            largest_side: Longer side in pixels at which the network sees a photograph, for files of free input size;
                None for the network's usual one. Small faces need a larger one, and time grows with its square.
            max_faces: Give only so many faces, the best; None for all.
            device: ``cpu``, ``cuda`` or ``auto``.
            threads: Threads of one call; 0 for onnxruntime's own choice.

        Raises:
            DetectorError: A setting is out of range, or `largest_side` is given for a file of fixed input size.
            ModelFileError: The file is missing, not an ONNX model, or another network.
            DeviceError: The device is unknown or unavailable.
        """
        kind = type(self)
        for setting, share in {"score_threshold": score_threshold, "nms_threshold": nms_threshold}.items():
            if share is not None and not (is_number(share) and 0 <= share <= 1):
                raise DetectorError(f"{setting} must be from 0 to 1, not {share!r}")
        check_counts(DetectorError, 1, optional=True, max_faces=max_faces, largest_side=largest_side)
        self._score_threshold = kind.score_threshold if score_threshold is None else score_threshold
        self._nms_threshold = kind.nms_threshold if nms_threshold is None else nms_threshold
        self._side = kind.largest_side if largest_side is None else largest_side
        self._max_faces = max_faces
        self._session: onnxruntime.InferenceSession
        self._reopen: Callable[[], OnnxDetector] | None = None
        if isinstance(model, str | Path | bytes):
            self._session = open_session(model, device, threads)
            self._reopen = partial(
                kind, absolute(model), score_threshold, nms_threshold, largest_side, max_faces, device, threads
            )
        else:
            self._session = model
        if not self.reads(self._session):
            name = str(model) if isinstance(model, str | Path) else "the model"
            raise ModelFileError(f"{name} is not a {kind.__name__} network: its inputs and outputs are other ones")
        self._input = self._session.get_inputs()[0]
        height, width = self._input.shape[2:]
        # A file exported with free sizes names them; one with fixed sizes takes no other.
        self._canvas = (width, height) if isinstance(width, int) and isinstance(height, int) else None
        if self._canvas is not None and largest_side is not None:
            raise DetectorError(
                f"this {kind.__name__} file sees every photograph at {width} x {height}: leave largest_side out"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is None:
            raise TypeError("a detector of an open session can't be pickled: make it of its file")
        return self._reopen, ()

    @classmethod
    @abstractmethod
    def reads(cls, session: onnxruntime.InferenceSession) -> bool:
        """Whether an open model is this kind of network, by the names and shapes of its inputs and outputs."""

    @abstractmethod
    def _decode(self, outputs: Sequence[Float32Array], canvas: tuple[int, int]) -> Float32Array:
        """``(N, 5)`` candidates: boxes in pixels of the input, scores in 0..1; a sixth column is the roll."""

    def _letterbox(self, photo: tuple[int, int]) -> Letterbox:
        if self._canvas is not None:
            return Letterbox.inside(photo, self._canvas, enlarge=self._enlarge)
        return Letterbox.within(photo, self._side, self._multiple, enlarge=self._enlarge, whole=self._whole_factor)

    def _detect(self, image: NDArray[np.generic], color: str) -> Float32Array:
        height, width = check_image(image).shape[:2]
        letterbox = self._letterbox((width, height))
        found = self._detect_in(image, letterbox, color)
        if len(found) == 0 and self._look_smaller:
            found = self._detect_in(image, replace(letterbox, inner=_scaled(letterbox.inner, 0.5)), color)
        return found

    def _detect_in(self, image: NDArray[np.generic], letterbox: Letterbox, color: str) -> Float32Array:
        planes: NDArray[Any] = letterbox.sample(image, swap_channels=color != self._color)[None]
        if self._input.type == "tensor(float)":
            planes = np.subtract(planes, np.float32(self._mean), dtype=np.float32)
            planes /= np.float32(self._scale)
        outputs = self._session.run(None, {self._input.name: planes})
        # Boxes of candidates with a low score may overflow; they are dropped here.
        with np.errstate(over="ignore", invalid="ignore"):
            faces = self._decode(outputs, letterbox.canvas)
            kept = np.isfinite(faces[:, :4]).all(axis=1) & (faces[:, 2:4] > faces[:, :2]).all(axis=1)
        faces = faces[kept & (faces[:, 4] >= np.float32(self._score_threshold))]
        chosen = non_maximum_suppression(faces[:, :4], faces[:, 4], self._nms_threshold, self._max_faces)
        found: Float32Array = faces[chosen]
        found[:, :4] = letterbox.to_image(found[:, :4])
        return found


def non_maximum_suppression(
    boxes: NDArray[np.floating], scores: NDArray[np.floating], threshold: float, most: int | None = None
) -> Int64Array:
    """Greedy non-maximum suppression: indices of the ``(N, 4)`` boxes to keep, by falling score, at most so many.

    Drops boxes whose intersection over union with a better one exceeds a threshold; of equal scores the earlier box
    wins.
    """
    # The same order, strictness and float32 rounding as cv2.dnn.NMSBoxes.
    left = np.argsort(-scores, kind="stable")[:_MAX_CANDIDATES]
    sizes = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    areas = sizes[:, 0] * sizes[:, 1]
    chosen: list[int] = []
    while len(left) and (most is None or len(chosen) < most):
        best, left = left[0], left[1:]
        chosen.append(int(best))
        low, high = np.maximum(boxes[best, :2], boxes[left, :2]), np.minimum(boxes[best, 2:], boxes[left, 2:])
        common = np.maximum(high - low, 0).astype(np.float64)
        shared = common[:, 0] * common[:, 1]
        distances = (1 - shared / (areas[best] + areas[left] - shared)).astype(np.float32)
        left = left[np.float32(1) - distances <= np.float32(threshold)]
    return np.array(chosen, np.int64)
