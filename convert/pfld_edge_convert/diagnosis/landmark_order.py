"""Whether a network's landmarks are the reference's in another order."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.proof import Suspicion
from pfld_edge_convert.diagnosis.finding import AGREES, Finding
from pfld_edge_runtime import LandmarkScheme

__all__ = ["nearest_order", "other_order"]


def other_order(
    landmarks: NDArray[np.floating],
    reference: NDArray[np.floating],
    truth: NDArray[np.floating],
    scheme: LandmarkScheme,
) -> Iterator[Finding]:
    """Look for a permutation that makes the landmarks the reference's.

    Args:
        landmarks: ``(N, P, 2)`` pixels.
        reference: ``(N, P, 2)``.
        truth: ``(N, P, 2)``; gives the eye distance.
        scheme: Names the points.
    """
    first, second = scheme.normalizing_points
    eyes = np.linalg.norm(truth[:, first].astype(np.float64) - truth[:, second], axis=1)
    apart = np.zeros((landmarks.shape[1],) * 2)
    for found, expected, eye in zip(landmarks.astype(np.float64), reference.astype(np.float64), eyes, strict=True):
        apart += np.linalg.norm(found[:, None] - expected[None], axis=2) / eye / len(eyes)
    order = nearest_order(apart)
    before, after = float(np.diag(apart).mean()), float(apart[np.arange(len(order)), order].mean())
    moved = np.flatnonzero(order != np.arange(len(order)))
    if len(moved) and after <= AGREES * before:
        sentence = f"the landmarks are in another order: {_described(order, moved, scheme)}"
        evidence: dict[str, float | str] = {
            "deviation": before,
            "reordered": after,
            "order": " ".join(map(str, order.tolist())),
        }
        yield Finding(Suspicion("order", sentence, evidence))


def nearest_order(apart: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pair rows with columns, the nearest pair first.

    Args:
        apart: ``(P, P)`` distances.

    Returns:
        ``(P,)`` the column of each row, a permutation.
    """
    count = len(apart)
    order = np.full(count, -1)
    taken = np.zeros(count, bool)
    for pair in np.argsort(apart, axis=None, kind="stable"):
        row, column = divmod(int(pair), count)
        if order[row] < 0 and not taken[column]:
            order[row], taken[column] = column, True
    return order


def _described(order: NDArray[np.int64], moved: NDArray[np.int64], scheme: LandmarkScheme) -> str:
    count = len(order)
    if scheme.has_mirror and np.array_equal(order, scheme.mirror):
        return "left and right are exchanged"
    shift = int(order[0])
    if np.array_equal(order, (np.arange(count) + shift) % count):
        return f"its point i is point (i + {shift}) % {count} of the scheme {scheme.name!r}"
    pairs = ", ".join(f"{row} is {order[row]} ({scheme.names[order[row]]})" for row in moved[:4].tolist())
    return f"{len(moved)} of {count} points are elsewhere: its point {pairs}{', ...' if len(moved) > 4 else ''}"
