"""Accuracy by three normalizations, failure rates and the area under the error curve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.metrics import nme_per_face
from pfld_edge_calib.proof.regions import eye_centres
from pfld_edge_runtime import LandmarkScheme

__all__ = ["FaceErrors", "Figures", "face_errors", "figures_by_subset", "measure_figures"]

Float = NDArray[np.float64]

_PART = 4096
"""Faces at a time: what is computed of a large set's landmarks must not need more memory than they."""


@dataclass(frozen=True, slots=True)
class FaceErrors:
    """Each face's normalized mean error; NaN where the face was missed.

    Attributes:
        ocular: ``(N,)`` divided by the distance of the scheme's normalizing points (WFLW 60 and 72, outer eye corners).
        pupil: ``(N,)`` divided by the distance of the pupils (WFLW 96 and 97); None where the scheme tells no eyes.
        diagonal: ``(N,)`` divided by the diagonal of the tight box around the true landmarks.
    """

    ocular: Float
    pupil: Float | None
    diagonal: Float


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one set of faces. Missed faces count as failures, and can't count in a mean error.

    Attributes:
        faces: Number of faces, missed ones included.
        misses: Faces that nobody found, where a detector stands before the network.
        nme: Mean error by the outer eye corners (the published protocol); NaN where all were missed.
        nme_pupil: By the pupils; None where the scheme tells no eyes.
        nme_diagonal: By the diagonal of the landmarks' box.
        failure_rate_08: Share of faces whose error by the outer eye corners exceeds 0.08.
        failure_rate_10: The same of 0.1, as WFLW's authors have it.
        auc_10: Area under the cumulative error curve from 0 to 0.1, divided by 0.1; 1 is perfect.
    """

    faces: int
    misses: int
    nme: float
    nme_pupil: float | None
    nme_diagonal: float
    failure_rate_08: float
    failure_rate_10: float
    auc_10: float


def face_errors(landmarks: NDArray[np.floating], truth: NDArray[np.floating], scheme: LandmarkScheme) -> FaceErrors:
    """Measure each face by each normalization.

    Args:
        landmarks: ``(N, P, 2)`` pixels, NaN for a missed face.
        truth: ``(N, P, 2)`` pixels.
        scheme: Names the points.
    """
    parts = [
        _errors_of_part(landmarks[start : start + _PART], truth[start : start + _PART], scheme)
        for start in range(0, max(len(truth), 1), _PART)
    ]
    pupil = [part.pupil for part in parts if part.pupil is not None]
    return FaceErrors(
        np.concatenate([part.ocular for part in parts]),
        np.concatenate(pupil) if pupil else None,
        np.concatenate([part.diagonal for part in parts]),
    )


def _errors_of_part(landmarks: NDArray[np.floating], truth: NDArray[np.floating], scheme: LandmarkScheme) -> FaceErrors:
    true = truth.astype(np.float64)
    ocular = nme_per_face(landmarks, true, scheme.normalizing_points)
    pixels = np.linalg.norm(landmarks.astype(np.float64) - true, axis=2).mean(axis=1)
    centres = eye_centres(scheme)
    pupil = None
    if centres is not None:
        left, right = (true[:, list(points)].mean(axis=1) for points in centres)
        pupil = pixels / np.linalg.norm(left - right, axis=1)
    return FaceErrors(ocular, pupil, pixels / np.linalg.norm(np.ptp(true, axis=1), axis=1))


def measure_figures(errors: FaceErrors, chosen: NDArray[np.bool_] | None = None) -> Figures:
    """Summarize the errors of all faces, or of some.

    Args:
        errors: Of N faces, at least one of them chosen.
        chosen: ``(N,)``, which faces; all where None.
    """
    some = np.ones(len(errors.ocular), bool) if chosen is None else chosen
    nmes = errors.ocular[some]
    if len(nmes) == 0:
        raise ValueError("figures of no faces are undefined")
    missed = np.isnan(nmes)
    at_least = np.where(missed, np.inf, nmes)
    return Figures(
        faces=len(nmes),
        misses=int(missed.sum()),
        nme=_mean(nmes),
        nme_pupil=None if errors.pupil is None else _mean(errors.pupil[some]),
        nme_diagonal=_mean(errors.diagonal[some]),
        failure_rate_08=float((at_least > 0.08).mean()),
        failure_rate_10=float((at_least > 0.1).mean()),
        auc_10=float(np.maximum(0, 0.1 - at_least).mean() / 0.1),
    )


def figures_by_subset(errors: FaceErrors, names: Sequence[str], members: NDArray[np.bool_]) -> Mapping[str, Figures]:
    """Summarize all faces (``all``) and those of each subset that has any.

    Args:
        errors: Of N faces.
        names: S subsets.
        members: ``(N, S)``.
    """
    some = {name: measure_figures(errors, members[:, i]) for i, name in enumerate(names) if members[:, i].any()}
    return {"all": measure_figures(errors), **some}


def _mean(values: Float) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
