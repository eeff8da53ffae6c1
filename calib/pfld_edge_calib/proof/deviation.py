"""Where on the face, and on whose, a network's landmarks lie away from the reference's."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.proof.regions import landmark_regions
from pfld_edge_runtime import LandmarkScheme

__all__ = ["Deviation", "RegionDeviation", "measure_deviation"]

Float = NDArray[np.float64]

_PART = 4096
"""Faces at a time; see `figures`."""


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
    """Distances between a network's landmarks and the reference's, as fractions of the true eye distance.

    Attributes:
        mean: Over all points and faces.
        largest: Largest of all.
        largest_face: Index of the face where that is.
        largest_landmark: Index of the landmark where that is.
        by_landmark: ``(P,)`` mean over the faces.
        largest_by_landmark: ``(P,)``.
        by_face: ``(N,)`` mean over the points; NaN where either network has none.
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
    """Compare two networks' landmarks.

    Args:
        landmarks: ``(N, P, 2)`` pixels; NaN for a missed face.
        reference: ``(N, P, 2)`` of the network it is compared with.
        truth: ``(N, P, 2)``; gives the eye distance.
        scheme: Names the points.
    """
    first, second = scheme.normalizing_points
    moved: Float = np.empty(truth.shape[:2])
    for start in range(0, len(truth), _PART):
        part = slice(start, start + _PART)
        eyes = np.linalg.norm(truth[part, first].astype(np.float64) - truth[part, second], axis=1)
        moved[part] = np.linalg.norm(landmarks[part].astype(np.float64) - reference[part], axis=2) / eyes[:, None]
    by_face = moved.mean(axis=1)
    seen = np.isfinite(by_face)
    known = moved if seen.all() else moved[seen]
    if not seen.any():  # NaN all over, not an error: a damaged file is to be reported with the others
        known = np.full((1, moved.shape[1]), np.nan)
    face = int(np.argmax(np.where(seen, moved.max(axis=1), -1.0)))
    landmark = int(moved[face].argmax())
    regions = {}
    for region, points in landmark_regions(scheme).items():
        some = known[:, list(points)]
        regions[region] = RegionDeviation(float(some.mean()), float(np.percentile(some, 95)), float(some.max()))
    return Deviation(
        float(known.mean()),
        float(known.max()),
        face,
        landmark,
        known.mean(axis=0),
        known.max(axis=0),
        by_face,
        regions,
    )
