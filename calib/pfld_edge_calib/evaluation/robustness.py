"""Corruption robustness: the NME as a function of the strength of each corruption of face images or boxes.

A face is first resampled to a patch in which it has a fixed size (`face_patch`), so that strengths mean the same on
every photograph; `CORRUPTIONS` change patches. `measure_turned` asks how well faces of any roll are found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.evaluation.metrics import nme_per_face, normalizing_distance
from pfld_edge_calib.evaluation.verification import json_types
from pfld_edge_calib.face import Face
from pfld_edge_calib.find_landmarks import BoxedPhoto, photographs, run_models, true_landmarks
from pfld_edge_runtime import FaceAnalyzer, LandmarkModel, tight_box
from pfld_edge_runtime.arrays import Float32Array, Float64Array, Uint8Array

FACE_SIDE = 160
"""Longer side of the landmarks' box in a patch, pixels; a network of 112 pixels sees it at 93."""

_REACH = 2.6
"""Side of a patch over that of the box: a crop of margin 1.2 that is rotated, shifted and enlarged stays inside."""


@dataclass(frozen=True, slots=True)
class FacePatch:
    """A face and its surroundings, ``(S, S, 3)`` uint8 BGR, black beyond the photograph; the rest is in its pixels."""

    image: Uint8Array
    landmarks: Float64Array
    box: Float64Array


def face_patch(photo: Uint8Array, face: Face, degrees: float | None = None) -> FacePatch:
    """Resample a face with landmarks, in a ``(H, W, 3)`` uint8 BGR photograph: averaged or interpolated by its size.

    With `degrees` the face is turned clockwise, and its box is the tight box of the turned landmarks.
    """
    if face.landmarks is None:
        raise ValueError("a patch needs a face with landmarks")
    truth = face.landmarks.astype(np.float64)
    low, high = truth.min(axis=0), truth.max(axis=0)
    scale = FACE_SIDE / float((high - low).max())
    size = round(FACE_SIDE * _REACH)
    corner = (low + high) / 2 - size / scale / 2
    # cv2's linear interpolation skips pixels where an image shrinks by more than two, so average first.
    shrink = max(1, int(1 / scale))
    kept = np.ones(2)
    if shrink > 1:
        before = np.array(photo.shape[1::-1])
        after = np.maximum(1, before // shrink)
        photo = np.asarray(cv2.resize(photo, after.tolist(), interpolation=cv2.INTER_AREA), np.uint8)
        kept = after / before
    factor = scale / kept
    matrix = np.array([[factor[0], 0, -corner[0] * scale], [0, factor[1], -corner[1] * scale]])
    # The centre of the first pixel is at 0 for cv2, at 0.5 for landmarks.
    matrix[:, 2] += (factor - 1) / 2
    points = (truth - corner) * scale
    box = ((face.bbox_xyxy.reshape(2, 2) - corner) * scale).ravel().astype(np.float64)
    if degrees is not None:
        turn = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), -degrees, 1.0)
        matrix = turn @ np.vstack([matrix, [0, 0, 1]])
        points = (points - 0.5) @ turn[:, :2].T + turn[:, 2] + 0.5
        box = tight_box(points)
    image = cv2.warpAffine(photo, matrix, (size, size), flags=cv2.INTER_LINEAR)
    return FacePatch(np.asarray(image, np.uint8), points, box)


@dataclass(frozen=True, slots=True)
class Corruption:
    """One kind of corruption; `apply` gives a copy, whose random directions and places don't depend on the strength."""

    name: str
    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[FacePatch, float, np.random.Generator], FacePatch]


def _blurred(patch: FacePatch, strength: float, _rng: np.random.Generator) -> FacePatch:
    return _with_image(patch, cv2.GaussianBlur(patch.image, (0, 0), strength * FACE_SIDE))


def _noisy(patch: FacePatch, strength: float, rng: np.random.Generator) -> FacePatch:
    noise = strength * rng.standard_normal(patch.image.shape, np.float32)
    return _with_image(patch, np.clip(np.rint(patch.image + noise), 0, 255))


def _compressed(patch: FacePatch, strength: float, _rng: np.random.Generator) -> FacePatch:
    packed = cv2.imencode(".jpg", patch.image, [cv2.IMWRITE_JPEG_QUALITY, int(strength)])[1]
    return _with_image(patch, np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR)))


def _darkened(patch: FacePatch, strength: float, _rng: np.random.Generator) -> FacePatch:
    return _with_image(patch, np.rint(patch.image * np.float32(strength)))


def _low_resolution(patch: FacePatch, strength: float, _rng: np.random.Generator) -> FacePatch:
    side = max(1, round(patch.image.shape[0] * strength / FACE_SIDE))
    few = cv2.resize(patch.image, (side, side), interpolation=cv2.INTER_AREA)
    return _with_image(patch, cv2.resize(few, patch.image.shape[1::-1], interpolation=cv2.INTER_LINEAR))


def _occluded(patch: FacePatch, strength: float, rng: np.random.Generator) -> FacePatch:
    """Cover a part of the landmarks' box with a grey rectangle of random place, shade and aspect ratio."""
    low, high = patch.landmarks.min(axis=0), patch.landmarks.max(axis=0)
    stretch, shade = float(rng.uniform(0.6, 1.6)), int(rng.integers(20, 236))
    place = rng.uniform(0, 1, 2)
    size = np.minimum(np.sqrt(strength * (high - low).prod() * np.array([stretch, 1 / stretch])), high - low)
    corner = np.rint(low + place * (high - low - size)).astype(int)
    end = np.rint(corner + size).astype(int)
    image = patch.image.copy()
    image[max(0, corner[1]) : end[1], max(0, corner[0]) : end[0]] = shade
    return replace(patch, image=image)


def _rotated(patch: FacePatch, strength: float, rng: np.random.Generator) -> FacePatch:
    """Rotate about the middle of the face; the box becomes the tight box of the rotated landmarks."""
    degrees = strength if rng.integers(2) else -strength
    center = (patch.landmarks.min(axis=0) + patch.landmarks.max(axis=0)) / 2
    matrix = cv2.getRotationMatrix2D((center[0] - 0.5, center[1] - 0.5), degrees, 1.0)
    size = patch.image.shape[0]
    image = cv2.warpAffine(patch.image, matrix, (size, size), flags=cv2.INTER_LINEAR)
    points = (patch.landmarks - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5
    return FacePatch(np.asarray(image, np.uint8), points, tight_box(points))


def _box_shifted(patch: FacePatch, strength: float, rng: np.random.Generator) -> FacePatch:
    angle = rng.uniform(0, 2 * np.pi)
    side = float((patch.box[2:] - patch.box[:2]).max())
    shift = strength * side * np.array([np.cos(angle), np.sin(angle)])
    return replace(patch, box=patch.box + np.tile(shift, 2))


def _box_scaled(patch: FacePatch, strength: float, _rng: np.random.Generator) -> FacePatch:
    center, half = (patch.box[:2] + patch.box[2:]) / 2, (patch.box[2:] - patch.box[:2]) / 2
    return replace(patch, box=np.concatenate([center - half * strength, center + half * strength]))


def _with_image(patch: FacePatch, image: NDArray[np.generic]) -> FacePatch:
    return replace(patch, image=np.asarray(image, np.uint8))


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption("blur", "standard deviation, share of the face", (0.01, 0.02, 0.035, 0.05), _blurred),
    Corruption("noise", "standard deviation, grey levels", (10, 20, 40, 60), _noisy),
    Corruption("JPEG", "quality", (40, 20, 10, 5), _compressed),
    Corruption("darkness", "light that is left", (0.5, 0.25, 0.1, 0.05), _darkened),
    Corruption("occlusion", "covered share of the box", (0.05, 0.1, 0.2, 0.35), _occluded),
    Corruption("rotation", "degrees", (10, 20, 30, 45), _rotated),
    Corruption("low resolution", "pixels of the face", (60, 40, 28, 18), _low_resolution),
    Corruption("box shift", "share of the box", (0.03, 0.06, 0.1, 0.15), _box_shifted),
    Corruption("box size", "factor", (0.8, 0.9, 1.1, 1.25), _box_scaled),
)
"""The corruptions of `measure_robustness`; "the face" is the longer side of its landmarks' box."""


@dataclass(frozen=True, slots=True)
class Curve:
    """``(M, K)`` NMEs of M models under one corruption at K strengths; NaN where a model predicted NaN."""

    name: str
    unit: str
    strengths: tuple[float, ...]
    nmes: Float64Array

    def with_clean(self, clean: Float64Array) -> tuple[list[str], Float64Array]:
        """Insert the ``(M,)`` NMEs without corruption, first or between factors below and above 1; give labels too."""
        place = sum(strength < 1 for strength in self.strengths) if min(self.strengths) < 1 < max(self.strengths) else 0
        labels = [f"{strength:g}" for strength in self.strengths]
        return [*labels[:place], "none", *labels[place:]], np.insert(self.nmes, place, clean, axis=1)


@dataclass(frozen=True, slots=True)
class Robustness:
    """Robustness of M models, by their names, on a number of faces.

    `clean` is the ``(M,)`` NME of the faces at the size at which they are corrupted, without corruption.
    """

    models: tuple[str, ...]
    faces: int
    clean: Float64Array
    curves: tuple[Curve, ...]


def measure_robustness(
    models: Sequence[LandmarkModel],
    faces: Sequence[Face],
    advance: Callable[[int], object] = lambda _count: None,
    *,
    corruptions: Sequence[Corruption] = CORRUPTIONS,
    seed: int = 0,
) -> Robustness:
    """Measure the NME of M models of one landmark scheme under each corruption at each strength.

    Every model sees the same pixels. Random choices depend on the seed, the face and the corruption only. Faces with a
    box of NaN, and those without NME, are left out.
    """

    def variants(photo: Uint8Array, face: Face, number: int) -> list[FacePatch]:
        patch = face_patch(photo, face)
        return [
            patch,
            *(
                corruption.apply(patch, strength, np.random.default_rng([seed, number, place]))
                for place, corruption in enumerate(corruptions)
                for strength in corruption.strengths
            ),
        ]

    def predict(patches: Sequence[FacePatch]) -> list[Float32Array]:
        photos = (BoxedPhoto([i], patch.image, patch.box[None], Path()) for i, patch in enumerate(patches))
        return run_models(models, photos, len(patches))

    names = [(corruption.name, corruption.unit, corruption.strengths) for corruption in corruptions]
    return _measured(models, faces, advance, variants, predict, names)


def measure_turned(
    models: Sequence[LandmarkModel],
    faces: Sequence[Face],
    advance: Callable[[int], object] = lambda _count: None,
    angles: Sequence[float] = tuple(range(30, 360, 30)),
) -> Robustness:
    """Measure the NME of faces upright (`clean`) and turned clockwise in the image plane, by each angle in degrees.

    They are found by a `FaceAnalyzer` whose detector gives the tight boxes of the turned landmarks, but no roll.
    """

    def variants(photo: Uint8Array, face: Face, _number: int) -> list[FacePatch]:
        return [face_patch(photo, face, angle) for angle in (0, *angles)]

    def analyzed(model: LandmarkModel, patch: FacePatch) -> Float32Array:
        landmarks: Float32Array = FaceAnalyzer(lambda _: patch.box, model)(patch.image, "bgr").landmarks[0]
        return landmarks

    def predict(patches: Sequence[FacePatch]) -> list[Float32Array]:
        return [np.stack([analyzed(model, patch) for patch in patches]) for model in models]

    return _measured(models, faces, advance, variants, predict, [("turn", "degrees clockwise", tuple(angles))])


def _measured(
    models: Sequence[LandmarkModel],
    faces: Sequence[Face],
    advance: Callable[[int], object],
    variants: Callable[[Uint8Array, Face, int], Sequence[FacePatch]],
    predict: Callable[[Sequence[FacePatch]], Sequence[Float32Array]],
    names: Sequence[tuple[str, str, tuple[float, ...]]],
) -> Robustness:
    """Average the NME of each face's variants: the clean one, and those of each curve's name, unit and strengths."""
    contract = models[0].contract
    first, second = contract.landmarks.normalizing_points
    whole_truth = true_landmarks(faces, contract)
    measurable = np.isfinite(normalizing_distance(whole_truth, [first], [second]))
    rows = [row for row, face in enumerate(faces) if measurable[row] and np.isfinite(face.bbox_xyxy).all()]
    ends = np.cumsum([1, *(len(strengths) for _, _, strengths in names)])
    total = np.zeros((len(models), ends[-1]))
    for shown, photo in photographs(faces, rows):
        for row in shown:
            patches = variants(photo, faces[row], row)
            truth = np.stack([patch.landmarks for patch in patches])
            truth[:, np.isnan(whole_truth[row]).any(axis=1)] = np.nan
            total += [nme_per_face(found, truth, (first, second)) for found in predict(patches)]
            advance(1)
    means = total / len(rows) if rows else np.full_like(total, np.nan)
    curves = tuple(Curve(*name, means[:, end - len(name[2]) : end]) for name, end in zip(names, ends[1:], strict=True))
    return Robustness(tuple(model.name for model in models), len(rows), means[:, 0], curves)


def robustness_record(found: Robustness) -> dict[str, Any]:
    """Convert to JSON types; NaN and infinity become None."""
    curves = [
        {
            "name": curve.name,
            "unit": curve.unit,
            "strengths": curve.strengths,
            "nme": dict(zip(found.models, curve.nmes, strict=True)),
        }
        for curve in found.curves
    ]
    record: dict[str, Any] = json_types(
        {"faces": found.faces, "models": found.models, "clean": found.clean, "damages": curves}
    )
    return record
