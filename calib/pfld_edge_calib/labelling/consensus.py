"""What many looks agree on, and how far each landmark and the whole face can be trusted.

The label is the median of the looks, coordinate by coordinate: one look that is wrong by much moves it little. A
landmark's disagreement is the standard deviation of the looks as a share of the face's size. It ranks landmarks and
faces by their true error; ``docs/labelling.md`` has the figures, and those of what else was tried.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime import LandmarkScheme

__all__ = ["TYPICAL_ERROR", "Consensus", "consensus", "face_sizes"]

TYPICAL_ERROR = 0.03
"""As a share of the face's size: about how far labels are off that all looks agree on. Trust falls from there."""

_LEAST_EYE_SHARE = 0.35
"""Eye distance over the longer side of the landmarks' box in a face that looks ahead; in profile the former vanishes,
where the box still says how large the face is."""


@dataclass(frozen=True, slots=True)
class Consensus:
    """The labels of N faces.

    Trust is in inverse proportion to an error's expected size. Its square is the sum of T squared, the typical error of
    any label, D squared, the face's disagreement, and d squared, the landmark's: ``T / sqrt(T^2 + D^2 + d^2)``. That is
    the product of a face's weight and its landmark's weight, which is what training counts, so that an unsure face
    isn't held against each of its landmarks once more.

    Attributes:
        landmarks: ``(N, P, 2)`` float32 pixels, the median of the looks.
        disagreement: ``(N, P)`` float64, d, as shares of the face's size.
        face_disagreement: ``(N,)`` float64, D, the median of the landmarks'.
        weights: ``(N,)`` float64 in 0 to 1, trust in the face: ``T / sqrt(T^2 + D^2)``.
        point_weights: ``(N, P)`` float64 in 0 to 1, trust in a landmark beside its face's:
            ``sqrt(T^2 + D^2) / sqrt(T^2 + D^2 + d^2)``.
    """

    landmarks: NDArray[np.float32]
    disagreement: NDArray[np.float64]
    face_disagreement: NDArray[np.float64]
    weights: NDArray[np.float64]
    point_weights: NDArray[np.float64]


def consensus(looks: NDArray[np.float32], scheme: LandmarkScheme) -> Consensus:
    """Bring looks together.

    Args:
        looks: ``(V, N, P, 2)`` pixels, V at least 2; see `gather_looks`.
        scheme: Of the landmarks.
    """
    landmarks = np.median(looks, axis=0).astype(np.float32)
    spread = np.linalg.norm(looks.astype(np.float64).std(axis=0), axis=2)
    disagreement = spread / face_sizes(landmarks, scheme)[:, None]
    of_face = np.median(disagreement, axis=1)
    level = np.hypot(of_face, TYPICAL_ERROR)
    return Consensus(
        landmarks=landmarks,
        disagreement=disagreement,
        face_disagreement=of_face,
        weights=TYPICAL_ERROR / level,
        point_weights=level[:, None] / np.hypot(disagreement, level[:, None]),
    )


def face_sizes(landmarks: NDArray[np.floating], scheme: LandmarkScheme) -> NDArray[np.float64]:
    """Measure faces: the distance that normalizes the NME, or 0.35 of the landmarks' box where that is more.

    Args:
        landmarks: ``(N, P, 2)`` pixels.
        scheme: Names the two normalizing points.

    Returns:
        ``(N,)`` pixels, at least 1.
    """
    first, second = scheme.normalizing_points
    eyes = np.linalg.norm(landmarks[:, first].astype(np.float64) - landmarks[:, second], axis=1)
    longer = np.ptp(landmarks.astype(np.float64), axis=1).max(axis=1)
    return np.asarray(np.maximum(np.maximum(eyes, _LEAST_EYE_SHARE * longer), 1.0), np.float64)
