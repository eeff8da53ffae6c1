"""Runs several networks over the same faces: each photograph is read once, each face cut once."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.evaluate import CropPredictor
from pfld_edge_calib.face import Face
from pfld_edge_calib.face_crops import face_photo
from pfld_edge_calib.proof.model import ProofModel
from pfld_edge_runtime import BoxError, Contract, CropWindows, crop_faces, crop_windows

__all__ = ["find_landmarks"]

_BATCH = 64

Found = NDArray[np.float32]


def find_landmarks(
    models: Sequence[ProofModel], faces: Sequence[Face], advance: Callable[[int], object] | None = None
) -> list[Found]:
    """Find the landmarks of every face by every network.

    Networks whose contracts cut faces alike (input size, margin) share the cut, whatever their order of colours.

    Args:
        models: At least one.
        faces: At least one; all of one photograph cost one read. A box of NaN is a face that a detector missed.
        advance: Called with the number of faces done after each batch.

    Returns:
        For each network ``(N, P, 2)`` float32 in each face's photograph pixels; NaN for missed faces.

    Raises:
        FaceSetError: A photograph can't be read, or a box can't be used.
    """
    shape = (len(faces), models[0].contract.landmarks.num_landmarks, 2)
    found = [np.full(shape, np.nan, np.float32) for _ in models]
    queues = {_cut(model.contract): _Queue(model.contract) for model in models if model.predict is not None}
    for rows, photo in _photographs(faces):
        boxes = np.stack([faces[row].bbox_xyxy for row in rows])
        for queue in queues.values():
            queue.add(rows, photo, boxes, str(faces[rows[0]].image))
        for model, points in zip(models, found, strict=True):
            if model.locate is not None:
                points[rows] = model.locate(photo, boxes)
        if any(queue.full for queue in queues.values()):
            _run(models, found, queues)
        if advance is not None:
            advance(len(rows))
    _run(models, found, queues)
    return found


class _Queue:
    """Faces that were cut by one rule and wait for the networks."""

    def __init__(self, contract: Contract) -> None:
        self._size, self._margin = contract.input_size, contract.crop.margin
        self._crops: list[NDArray[np.uint8]] = []
        self._windows: list[CropWindows] = []
        self._rows: list[int] = []

    @property
    def full(self) -> bool:
        return len(self._rows) >= _BATCH

    def add(self, rows: Sequence[int], photo: NDArray[np.uint8], boxes: NDArray[np.float64], name: str) -> None:
        try:
            windows = crop_windows(boxes, self._margin)
        except BoxError as error:
            raise FaceSetError(f"{name}: {error}") from error
        self._crops.append(crop_faces(photo, windows, self._size))
        self._windows.append(windows)
        self._rows.extend(rows)

    def take(self) -> Iterator[tuple[list[int], CropWindows, NDArray[np.uint8]]]:
        """Empty the queue, in batches of BGR crops."""
        if not self._rows:
            return
        crops, rows = np.concatenate(self._crops), self._rows
        corners = np.concatenate([windows.corners for windows in self._windows])
        sizes = np.concatenate([windows.sizes for windows in self._windows])
        self._crops, self._windows, self._rows = [], [], []
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            yield rows[part], CropWindows(corners[part], sizes[part]), crops[part]


def _run(models: Sequence[ProofModel], found: Sequence[Found], queues: dict[tuple[int, float], _Queue]) -> None:
    for cut, queue in queues.items():
        users: list[tuple[CropPredictor, str, Found]] = [
            (model.predict, model.contract.color_order, points)
            for model, points in zip(models, found, strict=True)
            if model.predict is not None and _cut(model.contract) == cut
        ]
        for rows, windows, crops in queue.take():
            for predict, order, points in users:
                fed = crops if order == "bgr" else np.ascontiguousarray(crops[:, :, :, ::-1])
                points[rows] = windows.to_image(predict(fed))


def _cut(contract: Contract) -> tuple[int, float]:
    return contract.input_size, contract.crop.margin


def _photographs(faces: Sequence[Face]) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """The faces of each photograph that have a box, with the photograph, BGR."""
    seen = (row for row, face in enumerate(faces) if np.isfinite(face.bbox_xyxy).all())
    # By photograph, for in WFLW's lists faces of one photograph are far apart.
    keys = {row: (str(faces[row].image), id(faces[row].encoded)) for row in seen}
    for _, rows in groupby(sorted(keys, key=keys.__getitem__), key=keys.__getitem__):
        all_rows = list(rows)
        photo = face_photo(faces[all_rows[0]])
        # A photograph under very many boxes would hold all their crops at once.
        for start in range(0, len(all_rows), _BATCH):
            yield all_rows[start : start + _BATCH], photo
