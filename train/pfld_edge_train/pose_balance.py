"""Shows faces that are turned to the side more often: few sets have many, and NME counts their errors most."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST", "TURNED_SHARE", "balanced_repeats"]

TURNED_SHARE = 0.48
"""Distance of the outer eye corners as a share of the landmarks' box, below which a face counts as turned.

Half of all faces lie above 0.58, a twentieth of LFW's press photographs below 0.51.
"""

MOST = 16
"""No face is shown more than so many times as often as its source says."""


def balanced_repeats(
    repeats: NDArray[np.int64],
    balance: NDArray[np.float64],
    landmarks: NDArray[np.float32],
    normalizing_points: tuple[int, int],
) -> NDArray[np.int64]:
    """Repeat each face ``(TURNED_SHARE / share) ** balance`` times as often, at least as often as before.

    The share is the distance of the normalizing points (the outer eye corners) in parts of the longer side of the
    landmarks' box: some 0.6 for a frontal face, towards 0 in profile. NME divides by the same distance.

    Args:
        repeats: ``(N,)``, what the sources say.
        balance: ``(N,)``, 0 for faces that stay as they are.
        landmarks: ``(N, P, 2)`` in any unit.
        normalizing_points: Two indices of landmarks.

    Returns:
        ``(N,)`` int64, from ``repeats`` to ``MOST * repeats``.
    """
    first, second = normalizing_points
    distance = np.linalg.norm(landmarks[:, first] - landmarks[:, second], axis=1)
    share = distance / np.maximum(np.ptp(landmarks, axis=1).max(axis=1), 1e-6)
    factor = np.clip((TURNED_SHARE / np.maximum(share, 1e-6)) ** balance, 1, MOST)
    return np.asarray(np.round(repeats * factor), np.int64)
