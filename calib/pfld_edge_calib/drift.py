"""How far a network's landmarks moved from another's on the same faces."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Drift", "measure_drift"]


@dataclass(frozen=True, slots=True)
class Drift:
    """What a conversion cost.

    Attributes:
        nme: Relative change of the NME: 0.01 is one percent worse, negative is better.
        mean_deviation: Mean distance between the two networks' landmarks, as a fraction of the eye distance.
        largest_deviation: Largest distance, as a fraction of the eye distance.
        largest_face: Index of the face where that is.
        largest_landmark: Index of the landmark where that is.
    """

    nme: float
    mean_deviation: float
    largest_deviation: float
    largest_face: int
    largest_landmark: int


def measure_drift(
    predicted: NDArray[np.floating],
    reference: NDArray[np.floating],
    truth: NDArray[np.floating],
    normalizing_points: tuple[int, int],
) -> Drift:
    """Compare two networks' landmarks.

    Args:
        predicted: ``(N, P, 2)`` of the converted network.
        reference: ``(N, P, 2)`` of the network it was made from.
        truth: ``(N, P, 2)``.
        normalizing_points: For WFLW 60 and 72.
    """
    first, second = normalizing_points
    eyes = np.linalg.norm(truth[:, first].astype(np.float64) - truth[:, second], axis=1)[:, None]
    nme, base = (
        float((np.linalg.norm(points.astype(np.float64) - truth, axis=2) / eyes).mean())
        for points in (predicted, reference)
    )
    moved = np.linalg.norm(predicted.astype(np.float64) - reference, axis=2) / eyes
    face, landmark = np.unravel_index(int(moved.argmax()), moved.shape)
    return Drift(nme / base - 1, float(moved.mean()), float(moved.max()), int(face), int(landmark))
