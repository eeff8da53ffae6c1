"""Errors of landmarks: NME, failure rate, area under the cumulative error curve (AUC), deviation from a reference.

And the curve that predicts from a network's doubt whether landmarks are good.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime import LandmarkScheme
from pfld_edge_runtime.arrays import BoolArray, Float64Array
from pfld_edge_runtime.contract import ConfidenceCurve

# In the order of tables. "eye" after "brow" and "pupil", for a name may hold both words.
_REGIONS = (
    ("brows", ("brow",)),
    ("pupils", ("pupil",)),
    ("eyes", ("eye",)),
    ("nose", ("nose",)),
    ("mouth", ("lip", "mouth")),
    ("contour", ("contour",)),
    ("other", ("",)),
)

_PART = 4096
"""Faces at a time: the landmarks of large sets are mapped files, of which no float64 copy fits into memory."""


def point_errors(landmarks: NDArray[np.floating], reference: NDArray[np.floating]) -> Float64Array:
    """Distances between the points of ``(N, P, 2)`` landmarks of one shape, ``(N, P)`` float64 in their unit."""
    if landmarks.shape != reference.shape:
        raise ValueError(f"predicted {landmarks.shape} and truth {reference.shape} must have one shape")
    errors: Float64Array = np.empty(landmarks.shape[:2])
    for start in range(0, len(landmarks), _PART):
        part = slice(start, start + _PART)
        errors[part] = np.linalg.norm(landmarks[part].astype(np.float64) - reference[part], axis=2)
    return errors


def normalizing_distance(truth: NDArray[np.floating], first: Sequence[int], second: Sequence[int]) -> Float64Array:
    """Distance between the means of two groups of true points, ``(N,)`` float64.

    NaN where one of the points is unlabelled, or both means coincide: such a face has no normalized error.
    """
    left, right = (truth[:, list(points)].astype(np.float64).mean(axis=1) for points in (first, second))
    distance = np.linalg.norm(left - right, axis=1)
    return np.asarray(np.where(distance > 0, distance, np.nan), np.float64)


def mean_error(landmarks: NDArray[np.floating], truth: NDArray[np.floating]) -> Float64Array:
    """Mean point error of each face over its labelled points, ``(N,)`` float64.

    NaN where no point is labelled, or the prediction of a labelled point is NaN.
    """
    errors, labelled = point_errors(landmarks, truth), np.isfinite(truth).all(axis=2)
    count = labelled.sum(axis=1)
    total = np.where(labelled, errors, 0).sum(axis=1)
    return np.asarray(total / np.where(count > 0, count, np.nan), np.float64)


def nme_per_face(
    predicted: NDArray[np.floating], truth: NDArray[np.floating], normalizing_points: tuple[int, int]
) -> Float64Array:
    """Mean point error of each face divided by the distance between two of its true points, ``(N,)`` float64.

    Both arrays are ``(N, P, 2)`` in one unit; points that are NaN in `truth` are unlabelled and left out of the mean.
    The normalizing points of WFLW are 60 and 72, the outer eye corners ("inter-ocular"). NaN where they are unlabelled
    or coincide.
    """
    first, second = normalizing_points
    return np.asarray(mean_error(predicted, truth) / normalizing_distance(truth, [first], [second]))


@dataclass(frozen=True, slots=True)
class FaceErrors:
    """Normalized mean error of each of N faces, ``(N,)``; NaN where the face was missed.

    Divided by the distance of the scheme's normalizing points (WFLW 60 and 72, outer eye corners), of the pupils (96
    and 97; None where the scheme has no eyes), or by the diagonal of the true landmarks' tight box. Faces that are not
    in the mask `measurable` count in no figure: their normalizing points are unlabelled or coincide.
    """

    ocular: Float64Array
    pupil: Float64Array | None
    diagonal: Float64Array
    measurable: BoolArray


def face_errors(landmarks: NDArray[np.floating], truth: NDArray[np.floating], scheme: LandmarkScheme) -> FaceErrors:
    """Measure ``(N, P, 2)`` landmarks, NaN for a missed face, by each normalization; NaN in `truth` is unlabelled."""
    first, second = scheme.normalizing_points
    pixels, ocular = mean_error(landmarks, truth), normalizing_distance(truth, [first], [second])
    centres = eye_centres(scheme)
    # fmax and fmin ignore NaN.
    size = (np.fmax.reduce(truth, axis=1) - np.fmin.reduce(truth, axis=1)).astype(np.float64)
    return FaceErrors(
        pixels / ocular,
        None if centres is None else pixels / normalizing_distance(truth, *centres),
        pixels / np.linalg.norm(size, axis=1),
        np.isfinite(ocular),
    )


def eye_centres(scheme: LandmarkScheme) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Find the points whose means are the left and the right pupil; None where no name of the scheme is an eye's.

    For WFLW points 96 and 97. For schemes without pupils all points of each eye, as in 300-W's "inter-pupil" distance
    (Sagonas et al., 2013).
    """
    for part in ("pupil", "eye"):
        left, right = (
            tuple(i for i, name in enumerate(scheme.names) if f"{name}_".startswith(f"{side}_{part}_"))
            for side in ("left", "right")
        )
        if left and right:
            return left, right
    return None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy over `faces` faces, of which a detector missed `misses`; these count as failures, but in no mean error.

    `nme` is by the outer eye corners (the published protocol), the others see `FaceErrors`; NaN where all were missed.
    A failure rate is the share of faces whose `nme` exceeds 0.08 or 0.1 (Wu et al. 2018, section 4), `auc_10` the area
    under the cumulative error curve from 0 to 0.1, divided by 0.1; 1 is perfect.
    """

    faces: int
    misses: int
    nme: float
    nme_pupil: float | None
    nme_diagonal: float
    failure_rate_08: float
    failure_rate_10: float
    auc_10: float


def accuracy(errors: FaceErrors, chosen: BoolArray | None = None) -> Accuracy:
    """Summarize the errors of N faces, or of those in the ``(N,)`` mask `chosen`, at least one.

    The cumulative error curve is a staircase, whose area below the threshold t is the mean of ``max(0, t - nme)``.
    """
    some = errors.measurable if chosen is None else chosen & errors.measurable
    nmes = errors.ocular[some]
    if len(nmes) == 0:
        raise ValueError("accuracy of no faces is undefined")
    missed = np.isnan(nmes)
    at_least = np.where(missed, np.inf, nmes)
    return Accuracy(
        faces=len(nmes),
        misses=int(missed.sum()),
        nme=_mean(nmes),
        nme_pupil=None if errors.pupil is None else _mean(errors.pupil[some]),
        nme_diagonal=_mean(errors.diagonal[some]),
        failure_rate_08=float((at_least > 0.08).mean()),
        failure_rate_10=float((at_least > 0.1).mean()),
        auc_10=float(np.maximum(0, 0.1 - at_least).mean() / 0.1),
    )


def accuracy_by_subset(errors: FaceErrors, names: Sequence[str], members: BoolArray) -> Mapping[str, Accuracy]:
    """Summarize N faces (``all``) and those of each of S subsets that has any, by the ``(N, S)`` mask `members`."""
    known = members & errors.measurable[:, None]
    some = {name: accuracy(errors, known[:, i]) for i, name in enumerate(names) if known[:, i].any()}
    return {"all": accuracy(errors), **some}


def _mean(values: Float64Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def landmark_regions(scheme: LandmarkScheme) -> dict[str, tuple[int, ...]]:
    """Group the indices of a scheme's points by their names: brows, pupils, eyes, nose, mouth, contour, other."""
    groups: dict[str, list[int]] = {region: [] for region, _ in _REGIONS}
    for index, name in enumerate(scheme.names):
        groups[next(region for region, words in _REGIONS if any(word in name for word in words))].append(index)
    return {region: tuple(indices) for region, indices in groups.items() if indices}


@dataclass(frozen=True, slots=True)
class RegionDeviation:
    """Mean, 95th percentile and largest deviation of one part of the face, over all its points and faces."""

    mean: float
    p95: float
    largest: float


@dataclass(frozen=True, slots=True)
class Deviation:
    """Distances between a model's landmarks and the reference's, as fractions of the true eye distance.

    The `largest` is that of the landmark and face with these indices. ``(P,)`` means and largest values over the faces
    are given by landmark, ``(N,)`` means over the points by face, NaN where either model has no landmarks.
    """

    mean: float
    largest: float
    largest_face: int
    largest_landmark: int
    by_landmark: Float64Array
    largest_by_landmark: Float64Array
    by_face: Float64Array
    by_region: Mapping[str, RegionDeviation]


def measure_deviation(
    landmarks: NDArray[np.floating],
    reference: NDArray[np.floating],
    truth: NDArray[np.floating],
    scheme: LandmarkScheme,
) -> Deviation:
    """Compare two models' ``(N, P, 2)`` landmarks in pixels, NaN for a missed face.

    Or a model's with annotations as `reference`, NaN at unlabelled points, which are left out. `truth` gives the eye
    distance.
    """
    first, second = scheme.normalizing_points
    moved = point_errors(landmarks, reference) / normalizing_distance(truth, [first], [second])[:, None]
    labelled = np.isfinite(reference).all(axis=2)
    # A face is seen if it has a distance at every labelled point; a damaged model may have seen none.
    seen = labelled.any(axis=1) & (np.isfinite(moved) | ~labelled).all(axis=1)
    known = np.ma.masked_array(moved, ~(labelled & seen[:, None]))
    by_face = known.mean(axis=1).filled(np.nan)
    face = int(np.argmax(known.max(axis=1).filled(-1.0)))
    regions = {}
    for region, points in landmark_regions(scheme).items():
        some = known[:, list(points)].compressed()
        some = some if len(some) else np.array([np.nan])
        regions[region] = RegionDeviation(float(some.mean()), float(np.percentile(some, 95)), float(some.max()))
    return Deviation(
        mean=float(known.mean()) if seen.any() else float("nan"),
        largest=float(known.max()) if seen.any() else float("nan"),
        largest_face=face,
        largest_landmark=int(known[face].filled(-1.0).argmax()),
        by_landmark=known.mean(axis=0).filled(np.nan),
        largest_by_landmark=known.max(axis=0).filled(np.nan),
        by_face=by_face,
        by_region=regions,
    )


def fitted_curve(doubts: NDArray[np.floating], good: BoolArray) -> ConfidenceCurve:
    """Fit the probability that faces or points are good to doubts of one shape, such as `mirror_disagreement`.

    Logistic regression on the logarithm of the doubts, 0 or more: least negative log likelihood.
    """
    from scipy.optimize import minimize

    doubt, signs = np.log(np.maximum(doubts.ravel(), 1e-6)).astype(float), np.where(good.ravel(), 1.0, -1.0)
    loss = lambda line: np.logaddexp(0, signs * (line[0] * doubt + line[1])).mean()  # noqa: E731
    slope, offset = minimize(loss, [4.0, 12.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).x
    return ConfidenceCurve(middle=float(np.exp(-offset / slope)), steepness=float(slope))
