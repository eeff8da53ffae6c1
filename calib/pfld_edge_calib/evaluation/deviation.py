"""Deviation of a model's landmarks from a reference's, by landmark, by face and by part of the face."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.evaluation.metrics import normalizing_distance, point_errors
from pfld_edge_runtime import LandmarkScheme

__all__ = ["Deviation", "RegionDeviation", "landmark_regions", "measure_deviation"]

Float = NDArray[np.float64]

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


def landmark_regions(scheme: LandmarkScheme) -> dict[str, tuple[int, ...]]:
    """Group a scheme's points by their names: brows, pupils, eyes, nose, mouth, contour, other.

    Returns:
        Indices by region; only regions that have points.
    """
    groups: dict[str, list[int]] = {region: [] for region, _ in _REGIONS}
    for index, name in enumerate(scheme.names):
        groups[next(region for region, words in _REGIONS if any(word in name for word in words))].append(index)
    return {region: tuple(indices) for region, indices in groups.items() if indices}


@dataclass(frozen=True, slots=True)
class RegionDeviation:
    """Deviation of one part of the face, over all its points and faces; unit as in `Deviation`.

    Attributes:
        mean: Mean.
        p95: 95th percentile.
        largest: Largest.
    """

    mean: float
    p95: float
    largest: float


@dataclass(frozen=True, slots=True)
class Deviation:
    """Distances between a model's landmarks and the reference's, as fractions of the true eye distance.

    Attributes:
        mean: Over all points and faces.
        largest: Largest of all.
        largest_face: Index of the face where that is.
        largest_landmark: Index of the landmark where that is.
        by_landmark: ``(P,)`` mean over the faces.
        largest_by_landmark: ``(P,)``.
        by_face: ``(N,)`` mean over the points; NaN where either model has no landmarks.
        by_region: Brows, pupils, eyes, nose, mouth, contour.
    """

    mean: float
    largest: float
    largest_face: int
    largest_landmark: int
    by_landmark: Float
    largest_by_landmark: Float
    by_face: Float
    by_region: Mapping[str, RegionDeviation]

    def worst_faces(self, count: int) -> list[int]:
        """Indices of the faces with the largest mean deviation, the worst first."""
        order = np.argsort(-np.nan_to_num(self.by_face, nan=-1.0), kind="stable")
        return [int(face) for face in order[:count]]


def measure_deviation(
    landmarks: NDArray[np.floating],
    reference: NDArray[np.floating],
    truth: NDArray[np.floating],
    scheme: LandmarkScheme,
) -> Deviation:
    """Compare two models' landmarks.

    Args:
        landmarks: ``(N, P, 2)`` pixels; NaN for a missed face.
        reference: ``(N, P, 2)`` of the model it is compared with, or annotations with NaN at unlabelled points, which
            are left out.
        truth: ``(N, P, 2)``; gives the eye distance.
        scheme: Names the points.
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
