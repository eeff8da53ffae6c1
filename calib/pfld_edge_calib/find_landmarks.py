"""Runs networks over faces: crops them (`cut_faces`), finds their landmarks (`find_landmarks`), and their boxes.

Boxes come from detectors, for photographs without annotation, or in place of the boxes of annotated faces.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.face import Face, Skip, refuse, skipping
from pfld_edge_calib.photo import UnusableFaces, face_photo, read_photo
from pfld_edge_runtime import (
    BoxError,
    Contract,
    CropWindows,
    Detector,
    LandmarkModel,
    LandmarkScheme,
    ModelContractError,
    crop_faces,
    crop_windows,
    tight_box,
)
from pfld_edge_runtime.arrays import Float32Array, Float64Array, Uint8Array
from pfld_edge_runtime.detection.detector import find_boxes

_BATCH = 64


def shared_scheme(models: Sequence[LandmarkModel]) -> LandmarkScheme:
    """Return the landmark scheme that all models share; ModelContractError where two have different ones."""
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


def true_landmarks(faces: Sequence[Face], contract: Contract) -> Float32Array:
    """Stack the annotated landmarks of faces, ``(N, P, 2)`` float32 pixels; NaN where a point is unlabelled.

    See `comparable`.
    """
    result = np.full((len(faces), contract.landmarks.num_landmarks, 2), np.nan, np.float32)
    for row, face in zip(result, comparable(faces, contract), strict=True):
        if face.landmarks is not None:
            labelled = slice(None) if face.point_weights is None else face.point_weights > 0
            row[labelled] = face.landmarks[labelled]
    return result


def comparable(faces: Iterable[Face], contract: Contract, skip: Skip = refuse) -> Iterator[Face]:
    """Check that faces can be compared with a model; those of a shard that can't go to `skip`.

    A face without landmarks, or with another number than the contract, is a FaceSetError.
    """
    scheme = contract.landmarks
    for face in faces:
        count = 0 if face.landmarks is None else len(face.landmarks)
        if count == scheme.num_landmarks:
            yield face
            continue
        with skipping(refuse if face.encoded is None else skip):
            raise FaceSetError(
                f"{face.image}: {count or 'no'} landmarks, the model predicts {scheme.num_landmarks} ({scheme.name})"
            )


@dataclass(frozen=True, slots=True)
class FaceCrops:
    """N faces as the network sees them: ``(N, S, S, 3)`` uint8 in its colour order, cut from windows of photographs.

    `rows` are their indices in the faces given.
    """

    rows: Sequence[int]
    faces: Sequence[Face]
    crops: Uint8Array
    windows: CropWindows


def cut_faces(
    faces: Sequence[Face], contract: Contract, batch_size: int = 64, unusable: UnusableFaces | None = None
) -> Iterator[FaceCrops]:
    """Crop faces in order with the runtime's crop, a batch at a time; one photograph is in memory at a time.

    Consecutive faces of one photograph share one read. `unusable` takes the faces that can't be measured, which no
    batch holds; where None a photograph that can't be read is a FaceSetError, and crops of faces outside of their
    photographs are black. A box without area is a FaceSetError.
    """
    swap = contract.color_order == "rgb"  # photographs are read as BGR

    def cut() -> Iterator[tuple[int, Uint8Array, CropWindows]]:
        for rows, photo in photographs(faces, range(len(faces)), unusable):
            for row in rows:
                window = _windows(faces[row].bbox_xyxy[None], contract.crop.margin, faces[row].image)
                yield row, crop_faces(photo, window, contract.input_size, swap_channels=swap)[0], window

    cropped = cut()
    while batch := list(islice(cropped, batch_size)):
        rows, crops, windows = zip(*batch, strict=True)
        yield FaceCrops(rows, [faces[row] for row in rows], np.stack(crops), _joined(windows))


def predict_landmarks(model: LandmarkModel, faces: Sequence[Face]) -> Float32Array:
    """Predict the landmarks of faces with one model, ``(N, P, 2)`` float32 photograph pixels; see `find_landmarks`."""
    return find_landmarks([model], faces)[0]


def find_landmarks(
    models: Sequence[LandmarkModel],
    faces: Sequence[Face],
    advance: Callable[[int], object] = lambda _count: None,
    unusable: UnusableFaces | None = None,
    refine: int = 0,
) -> list[Float32Array]:
    """Predict the landmarks of every face with every model, for each ``(N, P, 2)`` float32 in photograph pixels.

    Models with the same input size and margin share crops, whatever their colour order, and all faces of one photograph
    share one read. A box of NaN marks a face that a detector missed; its landmarks are NaN. `refine` is the number of
    further passes, each in the tight box of the landmarks that the model predicted before. `advance` gets the number of
    faces done after each photograph; the rest is as for `cut_faces`, with landmarks of NaN for unusable faces.
    """
    found = run_models(models, _boxed_photos(faces, unusable), len(faces), advance)
    for _ in range(refine):
        for model, landmarks in zip(models, found, strict=True):
            seen = np.isfinite(landmarks).all(axis=(1, 2))
            boxed = [replace(faces[row], bbox_xyxy=tight_box(landmarks[row])) for row in np.flatnonzero(seen).tolist()]
            landmarks[seen] = predict_landmarks(model, boxed)
    return found


class BoxedPhoto(NamedTuple):
    """A ``(H, W, 3)`` uint8 BGR photograph, the ``(N, 4)`` boxes of some of its faces, and their rows in the result."""

    rows: Sequence[int]
    image: Uint8Array
    boxes: Float64Array
    name: Path


def run_models(
    models: Sequence[LandmarkModel],
    photos: Iterable[BoxedPhoto],
    count: int,
    advance: Callable[[int], object] = lambda _count: None,
) -> list[Float32Array]:
    """Predict the landmarks of `count` faces in photographs that are in memory; see `find_landmarks`."""
    found = [np.full((count, model.contract.landmarks.num_landmarks, 2), np.nan, np.float32) for model in models]
    queues: dict[tuple[int, float], _CropQueue] = {}
    whole = []
    for model, landmarks in zip(models, found, strict=True):
        if model.contract.end_to_end:
            whole.append((model, landmarks))
        else:
            key = model.contract.input_size, model.contract.crop.margin
            queues.setdefault(key, _CropQueue(*key)).models.append((model, landmarks))
    for photo in photos:
        for queue in queues.values():
            queue.add(photo)
        for model, landmarks in whole:
            landmarks[photo.rows] = model.locate(photo.image, photo.boxes, "bgr")
        advance(len(photo.rows))
    for queue in queues.values():
        queue.run()
    return found


class _CropQueue:
    """Crops of one input size and margin that wait for the models that share them, each with its landmarks."""

    def __init__(self, size: int, margin: float) -> None:
        self._size, self._margin = size, margin
        self.models: list[tuple[LandmarkModel, Float32Array]] = []
        self._waiting: list[tuple[Sequence[int], CropWindows, Uint8Array]] = []

    def add(self, photo: BoxedPhoto) -> None:
        windows = _windows(photo.boxes, self._margin, photo.name)
        self._waiting.append((photo.rows, windows, crop_faces(photo.image, windows, self._size)))
        if sum(len(rows) for rows, _, _ in self._waiting) >= _BATCH:
            self.run()

    def run(self) -> None:
        if not self._waiting:
            return
        parts, boxes, pictures = zip(*self._waiting, strict=True)
        self._waiting = []
        rows, crops, windows = [row for part in parts for row in part], np.concatenate(pictures), _joined(boxes)
        for start in range(0, len(rows), _BATCH):
            some = slice(start, start + _BATCH)
            batch = CropWindows(windows.corners[some], windows.sizes[some])
            for model, landmarks in self.models:
                swapped = model.contract.color_order != "bgr"
                fed = np.ascontiguousarray(crops[some, :, :, ::-1]) if swapped else crops[some]
                landmarks[rows[some]] = batch.to_image(model.predict(fed))


def _joined(windows: Sequence[CropWindows]) -> CropWindows:
    return CropWindows(np.concatenate([each.corners for each in windows]), np.concatenate([w.sizes for w in windows]))


def _windows(boxes: Float64Array, margin: float, name: Path) -> CropWindows:
    try:
        return crop_windows(boxes, margin)
    except BoxError as error:
        raise FaceSetError(f"{name}: {error}") from error


def photographs(
    faces: Sequence[Face], rows: Iterable[int], unusable: UnusableFaces | None = None
) -> Iterator[tuple[list[int], Uint8Array]]:
    """Read the ``(H, W, 3)`` uint8 BGR photograph that consecutive rows share, for those that can be measured.

    `unusable` takes the others; where None a photograph that can't be read is a FaceSetError.
    """
    for _, group in groupby(rows, key=lambda row: (faces[row].image, id(faces[row].encoded))):
        shown = list(group)
        if unusable is None:
            yield shown, face_photo(faces[shown[0]])
            continue
        photo, shown = unusable.read(faces, shown)
        if photo is not None:
            yield shown, photo


def _boxed_photos(faces: Sequence[Face], unusable: UnusableFaces | None) -> Iterator[BoxedPhoto]:
    """Group the faces that have a box by photograph: in WFLW's lists faces of one photograph are far apart."""
    seen = [row for row, face in enumerate(faces) if np.isfinite(face.bbox_xyxy).all()]
    seen.sort(key=lambda row: (str(faces[row].image), id(faces[row].encoded)))
    for rows, photo in photographs(faces, seen, unusable):
        # In parts: a photograph under very many boxes would hold all their crops at once.
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            yield BoxedPhoto(some, photo, np.stack([faces[row].bbox_xyxy for row in some]), faces[some[0]].image)


SAME_FACE = 0.3
"""Least intersection over union of a detection and the tight box of the annotated landmarks to match them."""

_MIN_SCORE = 0.7
_MIN_SIZE = 32
"""Side in pixels under which a face is too coarse to calibrate on."""


def detected_faces(
    photos: Sequence[Path],
    detector: Detector,
    contract: Contract,
    advance: Callable[[int], object] = lambda _count: None,
    skip: Skip = refuse,
    faceless: Callable[[Path], object] = lambda _photo: None,
) -> list[Face]:
    """Find the faces of a score of 0.7 or more and 32 pixels or more; `refined` gives them the boxes of landmarks.

    The network's contract gives the kind of box. `advance` gets 1 after each photograph, and `skip` the error of each
    that can't be read; FaceSetError where there is no face. `faceless` gets each photograph without such a face.
    """
    faces = []
    for path in photos:
        with skipping(skip):
            boxes, scores = find_boxes(detector, read_photo(path), "bgr", contract)
            large = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) >= _MIN_SIZE
            # A detector that gives no scores gives NaN.
            chosen = boxes[large & ~(scores < _MIN_SCORE)].astype(np.float64)
            faces += [Face(path, box, group=str(path)) for box in chosen]
            if len(chosen) == 0:
                faceless(path)
        advance(1)
    if not faces:
        raise FaceSetError(f"the detector found no face of {_MIN_SIZE} pixels or more in {len(photos)} photographs")
    return faces


def refined(faces: Sequence[Face], model: LandmarkModel, passes: int = 2) -> list[Face]:
    """Replace each box by the tight box of the landmarks that a network predicts in it, `passes` times.

    The second pass sees the face in the box that the network was trained on. Faces whose landmarks collapsed are left
    out.
    """
    kept = list(faces)
    for _ in range(passes):
        found = zip(kept, predict_landmarks(model, kept), strict=True)
        moved = [replace(face, bbox_xyxy=tight_box(points), landmarks=points) for face, points in found]
        kept = [face for face in moved if (face.bbox_xyxy[2:] - face.bbox_xyxy[:2]).max() >= _MIN_SIZE / 2]
    return kept


def as_detected_by(
    detector: Detector,
    faces: Sequence[Face],
    contract: Contract,
    advance: Callable[[int], object] = lambda _count: None,
    unusable: UnusableFaces | None = None,
) -> list[Face]:
    """Replace the box of each annotated face by its detection, mapped to the box that the network was trained on.

    A missed or unusable face gets a box of NaN. Unmatched detections are ignored, for datasets may annotate only some
    faces of a photograph. `advance` gets the number of faces done after each photograph. A photograph that can't be
    read is an error unless there is `unusable`.
    """
    unusable = UnusableFaces() if unusable is None else unusable
    found = [replace(face, bbox_xyxy=np.full(4, np.nan)) for face in faces]
    by_photo: dict[str, list[int]] = {}
    for row, face in enumerate(faces):
        by_photo.setdefault(str(face.image), []).append(row)
    for rows in by_photo.values():
        photo, shown = unusable.read(faces, rows)
        if photo is not None and shown:
            boxes, _ = find_boxes(detector, photo, "bgr", contract)
            truth = np.stack([faces[row].bbox_xyxy for row in shown])
            for row, box in zip(shown, matched(truth, boxes.astype(np.float64)), strict=True):
                found[row] = replace(faces[row], bbox_xyxy=box)
        advance(len(rows))
    return found


def overlaps(boxes: NDArray[np.floating], others: NDArray[np.floating], *, of_smaller: bool = False) -> Float64Array:
    """Intersection over union of ``(..., 4)`` boxes x0, y0, x1, y1, which broadcast, in float64.

    With `of_smaller` the intersection is over the area of the smaller box, 0 for boxes without area.
    """
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:4], others[..., 2:4])
    shared = np.maximum(high - low, 0.0).prod(axis=-1)
    areas = [(some[..., 2:4] - some[..., :2]).prod(axis=-1, dtype=np.float64) for some in (boxes, others)]
    whole = np.maximum(np.minimum(*areas), 1e-9) if of_smaller else areas[0] + areas[1] - shared
    return np.asarray(shared / whole, np.float64)


def matched(truth: Float64Array, detections: Float64Array) -> Float64Array:
    """Match annotated boxes with detections one to one, so that the summed intersection over union is largest.

    ``(N, 4)``, the detection of each annotated box; NaN where none overlaps by `SAME_FACE`.
    """
    from scipy.optimize import linear_sum_assignment

    shares = overlaps(truth[:, None], detections)
    shares[shares < SAME_FACE] = 0
    rows, columns = linear_sum_assignment(shares, maximize=True)
    matches = shares[rows, columns] > 0
    result = np.full(truth.shape, np.nan)
    result[rows[matches]] = detections[columns[matches]]
    return result
