"""Which points of one landmark scheme are points of another, so that a trained last layer is not thrown away."""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime import FIVE_POINTS, IBUG_68, WFLW_98, LandmarkScheme, five_points, landmarks_68

__all__ = ["PointMap", "map_points"]

_MAPPINGS = {IBUG_68: landmarks_68, FIVE_POINTS: five_points}
"""What the runtime makes of WFLW's 98 points; each new point is a weighted mean of old ones."""

_UNNAMED = re.compile(r"point_\d+")


@dataclass(frozen=True, slots=True)
class PointMap:
    """New points as weighted means of old ones.

    Attributes:
        matrix: ``(new points, old points)`` float64, rows that sum to 1, or to 0 where a point is new.
        reason: In words, for the user.
    """

    matrix: NDArray[np.float64]
    reason: str

    @property
    def known(self) -> NDArray[np.bool_]:
        """``(new points,)``: true where a point follows from old ones."""
        return np.asarray(self.matrix.any(axis=1))


def map_points(old: LandmarkScheme | None, old_count: int, new: LandmarkScheme) -> PointMap:
    """Find what the points of one scheme are in another.

    Args:
        old: None where a checkpoint says nothing of its points: taken as the new scheme if there are as many.
        old_count: How many points that are.
        new: The scheme to be learned.
    """
    if old is None or old == new or (old.name, len(old.names)) == (new.name, len(new.names)):
        if old_count == new.num_landmarks:
            assumed = ", taken as the same points, for the file doesn't say" if old is None else ""
            return PointMap(np.eye(old_count), f"all {old_count} points{assumed}")
    elif old == WFLW_98 and new in _MAPPINGS:
        matrix = _linear_part(new)
        return PointMap(matrix, f"all {new.num_landmarks} points follow from {old.name}")
    matrix = np.zeros((new.num_landmarks, old_count))
    places = {name: i for i, name in enumerate(old.names if old else ()) if not _UNNAMED.fullmatch(name)}
    for row, name in zip(matrix, new.names, strict=True):
        if name in places:
            row[places[name]] = 1
    shared = int(matrix.sum())
    found = (
        f"{shared} of {new.num_landmarks} points are {old.name}'s of the same name" if old and shared else "no point"
    )
    return PointMap(matrix, found)


def _linear_part(new: LandmarkScheme) -> NDArray[np.float64]:
    """Ask the mapping for what it makes of each single point: it is linear."""
    units = np.zeros((WFLW_98.num_landmarks, WFLW_98.num_landmarks, 2))
    units[..., 0] = np.eye(WFLW_98.num_landmarks)
    return np.asarray(_MAPPINGS[new](units)[..., 0].T, np.float64)
