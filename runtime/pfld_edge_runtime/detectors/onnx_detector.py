"""What the public detectors have in common: an ONNX file, boxes with scores, suppression."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pfld_edge_runtime.crop import check_image
from pfld_edge_runtime.detectors.base import FaceDetector
from pfld_edge_runtime.detectors.errors import DetectorError
from pfld_edge_runtime.detectors.letterbox import Letterbox, sample_letterbox
from pfld_edge_runtime.detectors.nms import non_maximum_suppression
from pfld_edge_runtime.errors import ModelFileError
from pfld_edge_runtime.session import open_session

__all__ = ["Candidates", "OnnxDetector"]

Candidates = tuple[NDArray[np.float32], NDArray[np.float32]]
"""``(N, 4)`` boxes in pixels of the network's input, and ``(N,)`` scores in 0..1."""


class OnnxDetector(FaceDetector):
    """A published face detector. Thread-safe: a call keeps nothing in the object.

    Attributes:
        score_threshold: What is taken where the caller gives none; likewise the next two.
        nms_threshold: Largest intersection over union of two faces.
        largest_side: Longer side at which a network of free input size sees a photograph, in pixels.
    """

    score_threshold: ClassVar[float]
    nms_threshold: ClassVar[float]
    largest_side: ClassVar[int]

    _color: ClassVar[str]
    _mean: ClassVar[float]
    _scale: ClassVar[float]
    _enlarges: ClassVar[bool]
    _multiple: ClassVar[int] = 32

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
        self._least_score = _share("score_threshold", kind.score_threshold, score_threshold)
        self._overlap = _share("nms_threshold", kind.nms_threshold, nms_threshold)
        self._most = None if max_faces is None else _count("max_faces", max_faces)
        self._session: onnxruntime.InferenceSession
        if isinstance(model, str | Path | bytes):
            self._session = open_session(model, device, threads)
        else:
            self._session = model
        if not self.reads(self._session):
            name = str(model) if isinstance(model, str | Path) else "the model"
            raise ModelFileError(f"{name} is not a {kind.__name__} network: its inputs and outputs are other ones")
        self._input = self._session.get_inputs()[0].name
        height, width = self._session.get_inputs()[0].shape[2:]
        # A file exported with free sizes names them; one with fixed sizes takes no other.
        self._canvas = (width, height) if isinstance(width, int) and isinstance(height, int) else None
        if self._canvas is not None and largest_side is not None:
            raise DetectorError(
                f"this {kind.__name__} file sees every photograph at {width} x {height}: leave largest_side out"
            )
        self._side = kind.largest_side if largest_side is None else _count("largest_side", largest_side)

    @classmethod
    @abstractmethod
    def reads(cls, session: onnxruntime.InferenceSession) -> bool:
        """Say whether an open model is this kind of network, by the names and shapes of its inputs and outputs."""

    @abstractmethod
    def _decode(self, outputs: Sequence[NDArray[np.float32]], canvas: tuple[int, int]) -> Candidates: ...

    def _letterbox(self, photo: tuple[int, int]) -> Letterbox:
        """Lay a photograph of some width and height into the input."""
        if self._canvas is not None:
            return Letterbox.inside(photo, self._canvas, enlarge=self._enlarges)
        return Letterbox.within(photo, self._side, self._multiple, enlarge=self._enlarges)

    def _detect(self, image: NDArray[np.generic], color: str) -> NDArray[np.float32]:
        height, width = check_image(image).shape[:2]
        letterbox = self._letterbox((width, height))
        pixels = sample_letterbox(image, letterbox, swap_channels=color != self._color)
        planes = (pixels.transpose(2, 0, 1)[None] - np.float32(self._mean)) / np.float32(self._scale)
        outputs = self._session.run(None, {self._input: np.ascontiguousarray(planes)})
        # A box of a hopeless candidate may overflow; it is dropped below.
        with np.errstate(over="ignore", invalid="ignore"):
            boxes, scores = self._decode(outputs, letterbox.canvas)
            sound = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        kept = sound & (scores >= self._least_score)
        boxes, scores = boxes[kept], scores[kept]
        chosen = non_maximum_suppression(boxes, scores, self._overlap, self._most)
        placed = letterbox.to_image(boxes[chosen])
        return np.concatenate([placed, scores[chosen, None]], axis=1).astype(np.float32)


def _share(name: str, usual: float, given: float | None) -> float:
    value = usual if given is None else given
    if not 0 <= value <= 1:
        raise DetectorError(f"{name} must be from 0 to 1, not {value!r}")
    return value


def _count(name: str, given: int) -> int:
    if given < 1:
        raise DetectorError(f"{name} must be 1 or more, not {given!r}")
    return given
