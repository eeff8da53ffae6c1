"""Which box is which face, and which two faces are one."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.tracking.similarity import face_size

__all__ = ["are_twins", "closest_pairs"]

Array = NDArray[np.float64]

_TWIN_DISTANCE = 0.25
"""Mean distance of corresponding landmarks, in faces, under which two sets of landmarks lie on one face. Two heads
can't come that close: cheek to cheek is about 0.8, one half hidden behind the other 0.5."""


def closest_pairs(known: Array, found: Array, gate: float) -> list[tuple[int, int]]:
    """Pair boxes that mean the same face, the closest first, each box at most once.

    How far apart two boxes are is the distance of their centres in faces, plus the logarithm of the ratio of their
    sizes. Unlike intersection over union it still tells near from far once boxes no longer overlap, as after an
    occlusion. Greedy pairing errs against the best assignment only where two found boxes both suit two known ones, so
    where heads stand within a gate of each other; there the closest pair is also the most certain one.

    Args:
        known: ``(N, 4)`` x0 y0 x1 y1.
        found: ``(M, 4)``.
        gate: Pairs farther apart than this are none.

    Returns:
        Indices into `known` and `found`.
    """
    if len(known) == 0 or len(found) == 0:
        return []
    distance = _distances(known, found)
    pairs = []
    while distance.min() <= gate:
        row, column = (int(index) for index in np.unravel_index(distance.argmin(), distance.shape))
        pairs.append((row, column))
        distance[row], distance[:, column] = np.inf, np.inf
    return pairs


def _distances(known: Array, found: Array) -> Array:
    """The ``(N, M)`` table of how far apart boxes are."""
    center = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (known, found)]
    size = [(boxes[:, 2:] - boxes[:, :2]).max(axis=1) for boxes in (known, found)]
    shift = np.linalg.norm(center[0][:, None] - center[1][None], axis=-1)
    mean = (size[0][:, None] + size[1][None]) / 2
    table: Array = shift / mean + np.abs(np.log(size[0][:, None] / size[1][None]))
    return table


def are_twins(one: Array, others: Sequence[Array]) -> list[bool]:
    """Tell for each of some faces' ``(P, 2)`` landmarks whether they lie on the same face as one's."""
    return [
        bool(np.linalg.norm(one - other, axis=1).mean() < _TWIN_DISTANCE * min(face_size(one), face_size(other)))
        for other in others
    ]
