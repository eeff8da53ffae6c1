"""Lays covers over faces with OpenCV, each within the rectangle that it touches."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_train.augment.covers import Covers
from pfld_edge_train.augment.rows import take_rows
from pfld_edge_train.augment.shapes import SHAPE_SIDE, shape_bank
from pfld_edge_train.augment.warp import warp_picture

__all__ = ["Patch", "lay_patch", "patches"]

Floats = NDArray[np.float64]

_CORNERS = np.array([[0, SHAPE_SIDE, 0, SHAPE_SIDE], [0, 0, SHAPE_SIDE, SHAPE_SIDE]]) - 0.5
"""Outer corners of a shape's picture in its pixel indices, ``(2, 4)``."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One cover of one face, and the rectangle that it touches.

    Attributes:
        left: First column.
        top: First row.
        width: Columns.
        height: Rows.
        shape: Row of the shape bank.
        to_shape: ``(2, 3)`` from the rectangle's pixel indices to the shape's.
        opacity: Of the shape's 255.
        filling: ``(3, 4)`` from the donor's colours to the cover's.
        donor: Row of the cache; None where the cover is one colour.
        to_donor: ``(2, 3)`` from the rectangle's pixel indices to the donor's.
    """

    left: int
    top: int
    width: int
    height: int
    shape: int
    to_shape: Floats
    opacity: float
    filling: Floats
    donor: int | None
    to_donor: Floats


def patches(covers: Covers, size: int) -> dict[int, Patch]:
    """The covers that are shown and touch their face, by the face's number; arithmetic for all of them at once.

    Args:
        covers: Of N faces.
        size: Side of the faces in pixels.
    """
    faces = np.flatnonzero(covers.shown)
    chosen = take_rows(covers, faces)
    places = np.linalg.inv(chosen.affines[:, :, :2]) @ (_CORNERS - chosen.affines[:, :, 2:])
    low = np.floor(places.min(axis=2)).clip(0, size).astype(np.int64)
    high = (np.ceil(places.max(axis=2)) + 1).clip(0, size).astype(np.int64)
    to_shape, to_donor = _from_corners(chosen.affines, low), _from_corners(chosen.skin, low)
    plain = (chosen.color * (1 - chosen.texture)[:, None])[:, :, None]
    filling = np.concatenate([np.eye(3) * chosen.texture[:, None, None], plain], axis=2)
    return {
        face: Patch(
            *(left, top, width, height),
            int(chosen.shape[i]),
            to_shape[i],
            float(chosen.opacity[i]),
            filling[i],
            int(chosen.donor[i]) if chosen.texture[i] > 0 else None,
            to_donor[i],
        )
        for i, (face, (left, top), (width, height)) in enumerate(
            zip(faces.tolist(), low.tolist(), (high - low).tolist(), strict=True)
        )
        if width > 0 and height > 0
    }


def lay_patch(face: NDArray[np.uint8], patch: Patch, crops: NDArray[np.uint8]) -> None:
    """Lay one cover over one face, in place.

    Args:
        face: ``(S, S, 3)``.
        patch: The cover.
        crops: ``(M, H, W, 3)``, the cache that donors come from.
    """
    within = (patch.width, patch.height)
    opacity = warp_picture(shape_bank()[patch.shape], patch.to_shape, within) * np.float32(patch.opacity / 255)
    if patch.donor is None:
        cover = np.empty((patch.height, patch.width, 3), np.uint8)
        cover[:] = np.rint(patch.filling[:, 3])
    else:
        cover = warp_picture(crops[patch.donor], patch.to_donor, within)
        cv2.transform(cover, patch.filling, dst=cover)
    part = face[patch.top : patch.top + patch.height, patch.left : patch.left + patch.width]
    part[:] = cv2.blendLinear(cover, part, opacity, 1 - opacity)


def _from_corners(affines: Floats, corners: NDArray[np.int64]) -> Floats:
    """The same maps, for parts of the results that begin at a corner, ``(N, 2)``."""
    origin = affines[:, :, :2] @ corners[:, :, None] + affines[:, :, 2:]
    return np.concatenate([affines[:, :, :2], origin], axis=2)
