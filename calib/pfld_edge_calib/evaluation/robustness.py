"""Corruption robustness: the NME as a function of the strength of each corruption."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.evaluation.corruptions import CORRUPTIONS, Corruption, FacePatch, face_patch
from pfld_edge_calib.evaluation.metrics import nme_per_face
from pfld_edge_calib.evaluation.verification import json_types
from pfld_edge_calib.face import Face
from pfld_edge_calib.find_landmarks import BoxedPhoto, run_models
from pfld_edge_calib.photo import read_photo
from pfld_edge_runtime import LandmarkModel

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """``(M, K)`` NMEs of M models under one corruption at K strengths; NaN where a model predicted NaN."""

    name: str
    unit: str
    strengths: tuple[float, ...]
    nmes: Float

    def with_clean(self, clean: Float) -> tuple[list[str], Float]:
        """Insert the ``(M,)`` NMEs without corruption, first or between factors below and above 1; give labels too."""
        place = sum(strength < 1 for strength in self.strengths) if min(self.strengths) < 1 < max(self.strengths) else 0
        labels = [f"{strength:g}" for strength in self.strengths]
        return [*labels[:place], "none", *labels[place:]], np.insert(self.nmes, place, clean, axis=1)


@dataclass(frozen=True, slots=True)
class Robustness:
    """Robustness of M models.

    Attributes:
        models: M names.
        faces: Number of faces.
        clean: ``(M,)`` NME of the faces at the size at which they are corrupted, without corruption.
        curves: One for each corruption.
    """

    models: tuple[str, ...]
    faces: int
    clean: Float
    curves: tuple[Curve, ...]


def measure_robustness(
    models: Sequence[LandmarkModel],
    faces: Sequence[Face],
    advance: Callable[[int], object] | None = None,
    *,
    corruptions: Sequence[Corruption] = CORRUPTIONS,
    seed: int = 0,
) -> Robustness:
    """Measure the NME under each corruption at each strength.

    Every model sees the same pixels. Random choices depend on the seed, the face and the corruption only.

    Args:
        models: M models of one landmark scheme.
        faces: With landmarks; those with a box of NaN, and those without NME, are left out.
        advance: Called with the number of faces done.
        corruptions: Which ones.
        seed: Seed of all random choices.

    Raises:
        FaceSetError: A photograph can't be read.
    """
    points = models[0].contract.landmarks.normalizing_points
    total = np.zeros((len(models), 1 + sum(len(corruption.strengths) for corruption in corruptions)))
    count = 0
    for patch, number, unlabelled in _patches(faces, points):
        variants = [
            patch,
            *(
                corruption.apply(patch, strength, np.random.default_rng([seed, number, place]))
                for place, corruption in enumerate(corruptions)
                for strength in corruption.strengths
            ),
        ]
        truth = np.stack([variant.landmarks for variant in variants])
        truth[:, unlabelled] = np.nan
        photos = (BoxedPhoto([i], variant.image, variant.box[None], Path()) for i, variant in enumerate(variants))
        for row, found in enumerate(run_models(models, photos, len(variants))):
            total[row] += nme_per_face(found, truth, points)
        count += 1
        if advance is not None:
            advance(1)
    means = total / count if count else np.full_like(total, np.nan)
    ends = np.cumsum([1, *(len(corruption.strengths) for corruption in corruptions)])
    curves = tuple(
        Curve(corruption.name, corruption.unit, corruption.strengths, means[:, start:end])
        for corruption, start, end in zip(corruptions, ends[:-1], ends[1:], strict=True)
    )
    return Robustness(tuple(model.name for model in models), count, means[:, 0], curves)


def _has_nme(face: Face, points: tuple[int, int]) -> bool:
    """Whether the normalizing points are labelled and differ."""
    if face.landmarks is None or (face.landmarks[points[0]] == face.landmarks[points[1]]).all():
        return False
    return face.point_weights is None or bool((face.point_weights[list(points)] > 0).all())


def _patches(faces: Sequence[Face], points: tuple[int, int]) -> Iterator[tuple[FacePatch, int, NDArray[np.bool_]]]:
    """Yield each face's patch, number, and ``(P,)`` mask of unlabelled points; a photograph's faces share one read."""
    numbered = [
        (number, face)
        for number, face in enumerate(faces)
        if np.isfinite(face.bbox_xyxy).all() and _has_nme(face, points)
    ]
    for path, group in groupby(numbered, key=lambda item: item[1].image):
        photo = read_photo(path)
        for number, face in group:
            patch = face_patch(photo, face)
            weights = np.ones(len(patch.landmarks)) if face.point_weights is None else face.point_weights
            yield patch, number, weights <= 0


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
