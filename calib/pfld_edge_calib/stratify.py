"""Chooses faces evenly over what makes them different."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.face import Face

__all__ = ["even_choice", "light", "pose"]

Array = NDArray[np.float64]

# WFLW: the tip of the nose, the ends of the contour, the outer corners of the eyes.
_NOSE, _RIGHT, _LEFT, _EYE, _OTHER_EYE = 54, 0, 32, 60, 72
_WFLW_POINTS = 98


def even_choice(features: Array, bins: Sequence[int], limit: int, seed: int = 0) -> NDArray[np.int64]:
    """Choose rows so that every cell of a grid of quantiles gives as many as it can.

    The cells are bounded by quantiles, so that each holds about as many rows: rare extremes are taken with the share
    that they have, not more. Ranges of INT8 grids suffer from both too few and too many of them.

    Args:
        features: ``(N, K)`` numbers; NaN where unknown.
        bins: K numbers of bins.
        limit: Most rows.
        seed: Of the choice within a cell.

    Returns:
        Sorted indices, all of them where there are no more than `limit`.
    """
    count = len(features)
    cells = np.zeros(count, np.int64)
    for column, parts in zip(features.T, bins, strict=True):
        known = np.where(np.isnan(column), np.nanmedian(column) if np.isfinite(column).any() else 0.0, column)
        cells = cells * parts + np.searchsorted(np.quantile(known, np.linspace(0, 1, parts + 1)[1:-1]), known)
    order = np.random.default_rng(seed).permutation(count)
    # The n-th row of each cell comes before the n + 1-st of any.
    turn = np.zeros(count, np.int64)
    seen: dict[int, int] = {}
    for row in order:
        turn[row] = seen.get(int(cells[row]), 0)
        seen[int(cells[row])] = turn[row] + 1
    return np.sort(order[np.argsort(turn[order], kind="stable")][:limit])


def pose(faces: Sequence[Face]) -> Array:
    """``(N, 2)`` how far each face is turned (-1 to 1) and tilted (radians); NaN without WFLW's 98 landmarks."""
    result = np.full((len(faces), 2), np.nan)
    for row, face in zip(result, faces, strict=True):
        points = face.landmarks
        if points is not None and len(points) == _WFLW_POINTS:
            right, left = (float(np.linalg.norm(points[_NOSE] - points[end])) for end in (_RIGHT, _LEFT))
            across = points[_OTHER_EYE] - points[_EYE]
            row[:] = (right - left) / max(right + left, 1e-6), np.arctan2(across[1], across[0])
    return result


def light(crops: NDArray[np.uint8]) -> Array:
    """``(N, 2)`` mean grey level and contrast (standard deviation) of each ``(N, S, S, 3)`` uint8 crop."""
    grey = crops.reshape(len(crops), -1).astype(np.float32)
    return np.stack([grey.mean(axis=1), grey.std(axis=1)], axis=1).astype(np.float64)
