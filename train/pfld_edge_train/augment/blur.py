"""Blur kernels of faces that moved or were out of focus."""

import numpy as np
from numpy.typing import NDArray

from pfld_edge_train.augment.looks import Looks

__all__ = ["blur_kernels"]

_FARTHEST = {1: 1.0, 2: 2.5, 3: 1.0}
"""Where each kind of kernel ends, as a multiple of its reach."""


def blur_kernels(looks: Looks, size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw the kernels of those faces that have one.

    Args:
        looks: Of N faces, B of them blurred (`blur_kind` above 0).
        size: Side of the faces in pixels.

    Returns:
        Kernels ``(B, K, K)`` that sum to 1, K odd and large enough for all, and for each the radius ``(B,)`` beyond
        which it is zero.
    """
    chosen = looks.blur_kind > 0
    kind, angle = looks.blur_kind[chosen], looks.blur_angle[chosen]
    reach = looks.blur_reach[chosen] * size / 112
    farthest = np.select([kind == key for key in _FARTHEST], list(_FARTHEST.values()), 1.0)
    radii = np.ceil(farthest * reach).astype(np.int64)
    radius = int(radii.max(initial=1))
    line = np.arange(-radius, radius + 1, dtype=np.float64)
    kind, reach, angle = kind[:, None, None], reach[:, None, None], angle[:, None, None]
    along = line * np.cos(angle) + line[:, None] * np.sin(angle)
    across = line * np.sin(angle) - line[:, None] * np.cos(angle)
    squared = line**2 + line[:, None] ** 2
    path = (reach + 0.5 - np.abs(along)).clip(0, 1) * (1 - np.abs(across)).clip(0, 1)
    bell = np.exp(-squared / (2 * reach**2))
    disc = (reach + 0.5 - np.sqrt(squared)).clip(0, 1)
    kernels = np.select([kind == 1, kind == 2], [path, bell], disc)
    # A radius cuts off what lies beyond it, so that small kernels stay small.
    kernels *= np.maximum(np.abs(line), np.abs(line[:, None])) <= radii[:, None, None]
    kernels /= kernels.sum(axis=(1, 2), keepdims=True)
    return kernels.astype(np.float32), radii
