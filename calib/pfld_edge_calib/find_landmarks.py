"""Crops annotated faces and runs models over them.

`cut_faces` yields crops in dataset order; `find_landmarks` runs several models over the same faces, reading each
photograph and cutting each face once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face
from pfld_edge_calib.photo import face_photo
from pfld_edge_calib.unusable_faces import UnusableFaces
from pfld_edge_runtime import (
    BoxError,
    Contract,
    CropWindows,
    LandmarkModel,
    LandmarkScheme,
    ModelContractError,
    crop_faces,
    crop_windows,
)

_BATCH = 64


def shared_scheme(models: Sequence[LandmarkModel]) -> LandmarkScheme:
    """Return the landmark scheme that all models share.

    Raises:
        ModelContractError: Two models have different schemes.
    """
    first = models[0]
    scheme = first.contract.landmarks
    for model in models[1:]:
        other = model.contract.landmarks
        if other != scheme:
            raise ModelContractError(
                f"{model.name} finds {other.num_landmarks} landmarks ({other.name}), {first.name} finds "
                f"{scheme.num_landmarks} ({scheme.name}): only networks of one scheme can be used together"
            )
    return scheme


def true_landmarks(faces: Sequence[Face], contract: Contract) -> NDArray[np.float32]:
    """Stack the annotated landmarks of faces, ``(N, P, 2)`` float32 pixels; NaN where a point is unlabelled.

    Raises:
        FaceSetError: A face has none, or another number of points than the contract.
    """
    count = contract.landmarks.num_landmarks
    result = np.full((len(faces), count, 2), np.nan, np.float32)
    for row, face in zip(result, faces, strict=True):
        if face.landmarks is None or len(face.landmarks) != count:
            found = "no landmarks" if face.landmarks is None else f"{len(face.landmarks)} landmarks"
            raise FaceSetError(f"{face.image}: {found}, the model predicts {count} ({contract.landmarks.name})")
        labelled = slice(None) if face.point_weights is None else face.point_weights > 0
        row[labelled] = face.landmarks[labelled]
    return result


@dataclass(frozen=True, slots=True)
class FaceCrops:
    """A batch of faces as the network sees them.

    Attributes:
        faces: N faces.
        crops: ``(N, S, S, 3)`` uint8 in the contract's colour order.
        windows: Position of each crop in its photograph.
    """

    faces: Sequence[Face]
    crops: NDArray[np.uint8]
    windows: CropWindows


def cut_faces(faces: Sequence[Face], contract: Contract, batch_size: int = 64) -> Iterator[FaceCrops]:
    """Crop faces in order with the runtime's crop, a batch at a time; one photograph is in memory at a time.

    Args:
        faces: Any number of faces; consecutive faces of one photograph share one read.
        contract: Gives input size, colour order and crop rule.
        batch_size: Most faces in a batch.

    Raises:
        FaceSetError: A photograph can't be read, or a box has no area.
    """
    path: Path | None = None
    encoded: bytes | None = None
    photo = np.zeros((0, 0, 3), np.uint8)
    swap = contract.color_order == "rgb"  # photographs are read as BGR
    for start in range(0, len(faces), batch_size):
        batch = faces[start : start + batch_size]
        names = f"a face of {batch[0].image} to {batch[-1].image}"
        windows = _windows(np.stack([face.bbox_xyxy for face in batch]), contract.crop.margin, names)
        crops = np.empty((len(batch), contract.input_size, contract.input_size, 3), np.uint8)
        for i, face in enumerate(batch):
            if face.image != path or face.encoded is not encoded:
                path, encoded, photo = face.image, face.encoded, face_photo(face)
            window = CropWindows(windows.corners[i : i + 1], windows.sizes[i : i + 1])
            crops[i] = crop_faces(photo, window, contract.input_size, swap_channels=swap)[0]
        yield FaceCrops(batch, crops, windows)


def predict_landmarks(
    model: LandmarkModel, faces: Sequence[Face], advance: Callable[[int], object] | None = None
) -> NDArray[np.float32]:
    """Predict the landmarks of faces with one model, ``(N, P, 2)`` float32 photograph pixels; see `find_landmarks`."""
    return find_landmarks([model], faces, advance)[0]


def find_landmarks(
    models: Sequence[LandmarkModel],
    faces: Sequence[Face],
    advance: Callable[[int], object] | None = None,
    unusable: UnusableFaces | None = None,
) -> list[NDArray[np.float32]]:
    """Predict the landmarks of every face with every model.

    Models with the same input size and margin share crops, whatever their colour order.

    Args:
        models: At least one.
        faces: At least one; all faces of one photograph share one read. A box of NaN marks a face that a detector
            missed.
        advance: Called with the number of faces done after each photograph.
        unusable: Takes the faces that can't be measured; where None a photograph that can't be read is an error, and
            faces outside of their photographs are looked for in black crops.

    Returns:
        For each model ``(N, P, 2)`` float32 in photograph pixels; NaN for missed and unusable faces.

    Raises:
        FaceSetError: A photograph can't be read, or a box has no area.
    """
    return run_models(models, _photographs(faces, unusable), len(faces), advance)


class BoxedPhoto(NamedTuple):
    """A photograph and some of its faces.

    Attributes:
        rows: Indices of the faces in the result.
        image: ``(H, W, 3)`` uint8 BGR.
        boxes: ``(N, 4)`` float64 pixels.
        name: Named in error messages.
    """

    rows: Sequence[int]
    image: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    name: str


def run_models(
    models: Sequence[LandmarkModel],
    photos: Iterable[BoxedPhoto],
    count: int,
    advance: Callable[[int], object] | None = None,
) -> list[NDArray[np.float32]]:
    """Predict the landmarks of `count` faces in photographs that are in memory; see `find_landmarks`."""
    found = [np.full((count, model.contract.landmarks.num_landmarks, 2), np.nan, np.float32) for model in models]
    croppers = [model.contract for model in models if not model.contract.end_to_end]
    queues = {_crop_key(contract): _CropQueue(contract) for contract in croppers}
    for photo in photos:
        for queue in queues.values():
            queue.add(photo)
        for model, landmarks in zip(models, found, strict=True):
            if model.contract.end_to_end:
                landmarks[photo.rows] = model.locate(photo.image, photo.boxes, "bgr")
        if any(queue.full for queue in queues.values()):
            _run_queues(models, found, queues)
        if advance is not None:
            advance(len(photo.rows))
    _run_queues(models, found, queues)
    return found


class _CropQueue:
    """Crops of one input size and margin that wait for the models."""

    def __init__(self, contract: Contract) -> None:
        self._size, self._margin = contract.input_size, contract.crop.margin
        self._crops: list[NDArray[np.uint8]] = []
        self._windows: list[CropWindows] = []
        self._rows: list[int] = []

    @property
    def full(self) -> bool:
        return len(self._rows) >= _BATCH

    def add(self, photo: BoxedPhoto) -> None:
        windows = _windows(photo.boxes, self._margin, photo.name)
        self._crops.append(crop_faces(photo.image, windows, self._size))
        self._windows.append(windows)
        self._rows.extend(photo.rows)

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


def _run_queues(
    models: Sequence[LandmarkModel],
    found: Sequence[NDArray[np.float32]],
    queues: dict[tuple[int, float], _CropQueue],
) -> None:
    for key, queue in queues.items():
        for rows, windows, crops in queue.take():
            for model, landmarks in zip(models, found, strict=True):
                if not model.contract.end_to_end and _crop_key(model.contract) == key:
                    swapped = model.contract.color_order != "bgr"
                    fed = np.ascontiguousarray(crops[:, :, :, ::-1]) if swapped else crops
                    landmarks[rows] = windows.to_image(model.predict(fed))


def _crop_key(contract: Contract) -> tuple[int, float]:
    return contract.input_size, contract.crop.margin


def _windows(boxes: NDArray[np.float64], margin: float, name: str) -> CropWindows:
    try:
        return crop_windows(boxes, margin)
    except BoxError as error:
        raise FaceSetError(f"{name}: {error}") from error


def _photographs(faces: Sequence[Face], unusable: UnusableFaces | None) -> Iterator[BoxedPhoto]:
    """Group the faces that have a box by photograph: in WFLW's lists faces of one photograph are far apart."""
    seen = (row for row, face in enumerate(faces) if np.isfinite(face.bbox_xyxy).all())
    keys = {row: (str(faces[row].image), id(faces[row].encoded)) for row in seen}
    for _, group in groupby(sorted(keys, key=keys.__getitem__), key=keys.__getitem__):
        rows = list(group)
        if unusable is None:
            photo = face_photo(faces[rows[0]])
        else:
            read, rows = unusable.read(faces, rows)
            if read is None:
                continue
            photo = read
        # In parts: a photograph under very many boxes would hold all their crops at once.
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            boxes = np.stack([faces[row].bbox_xyxy for row in some])
            yield BoxedPhoto(some, photo, boxes, str(faces[rows[0]].image))
