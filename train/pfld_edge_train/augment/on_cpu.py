"""Carries out a plan with OpenCV, face by face, in bytes: the fastest way on a CPU.

A face of bytes stays in a core's own cache from cut to JPEG, and a change costs only the faces that get it. What each
step computes is what `on_device` computes for a whole batch; tests compare the two.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_train.augment.geometry import supersampling, warp_picture
from pfld_edge_train.augment.occlusions import SHAPE_SIDE, Occlusions, shape_bank
from pfld_edge_train.augment.photometry import BANK_STD, Photometry, blur_kernels, luma, noise_bank
from pfld_edge_train.augment.plan import AugmentPlan, take_rows
from pfld_edge_train.face_sources import Crops

__all__ = ["render_on_cpu"]

Face = NDArray[np.uint8]


def render_on_cpu(crops: Crops, plan: AugmentPlan, size: int, color_order: str) -> NDArray[np.uint8]:
    """Cut and change the faces of a plan.

    Args:
        crops: ``(M, H, W, 3)``, the whole cache; only the plan's rows are read.
        plan: Of N faces.
        size: Side of the result in pixels.
        color_order: ``bgr`` or ``rgb``.

    Returns:
        ``(N, size, size, 3)`` grey levels.
    """
    faces = np.empty((len(plan.rows), size, size, 3), np.uint8)
    affines = plan.frames.affines(size)
    change = plan.change
    if change is None:
        for face, row, affine in zip(faces, plan.rows, affines, strict=True):
            warp_picture(crops[row], affine, (size, size), out=face)
        return faces
    factors = supersampling(affines, change.smooth).tolist()
    layers = [_patches(occlusions, size) for occlusions in change.occlusions]
    camera = _Camera(change.photometry, size, color_order)
    for index, face in enumerate(faces):
        warp_picture(crops[plan.rows[index]], affines[index], (size, size), factors[index], out=face)
        for layer in layers:
            if index in layer:
                _lay_patch(face, layer[index], crops)
        camera.take(face, index)
    return faces


class _Camera:
    """Light and camera for the faces of one batch."""

    def __init__(self, photometry: Photometry, size: int, color_order: str) -> None:
        self._photometry, self._size = photometry, size
        self._kernels, self._radii = blur_kernels(photometry, size)
        self._kernel_of = np.cumsum(photometry.blur_kind > 0) - 1
        self._tones = np.concatenate([photometry.gain[:, :, None] * np.eye(3), photometry.offset[:, :, None]], axis=2)
        self._toned = (photometry.gain != 1).any(axis=1) | (photometry.offset != 0).any(axis=1)
        self._lit = (photometry.slopes != 0).max(axis=1)
        self._gray = np.broadcast_to(luma(color_order), (3, 3))
        self._rgb = color_order == "rgb"
        self._bank = noise_bank(3 * size * size)
        self._line = np.linspace(-1, 1, size, dtype=np.float32)

    def take(self, face: Face, index: int) -> None:
        """Change one face in place."""
        photometry, size = self._photometry, (self._size, self._size)
        if photometry.gamma[index] != 1:
            cv2.LUT(face, _gamma_table(float(photometry.gamma[index])), dst=face)
        if self._toned[index]:
            cv2.transform(face, self._tones[index], dst=face)
        if self._lit[index]:
            self._light(face, photometry.slopes[index])
        if photometry.blur_kind[index]:
            self._blur(face, int(self._kernel_of[index]))
        if photometry.narrow[index]:
            narrow = (int(photometry.narrow[index]),) * 2
            cv2.resize(cv2.resize(face, narrow, interpolation=cv2.INTER_AREA), size, dst=face)
        if photometry.noise[index] > 0:
            self._add_noise(face, float(photometry.noise[index]), int(photometry.noise_start[index]))
        if photometry.gray[index]:
            cv2.transform(face, self._gray, dst=face)
        if photometry.jpeg[index]:
            self._compress(face, int(photometry.jpeg[index]))

    def _light(self, face: Face, slopes: NDArray[np.float32]) -> None:
        columns, rows = np.exp(slopes[0] * self._line), np.exp(slopes[1] * self._line)
        # Columns and channels as one axis: numpy's and OpenCV's loops are then long.
        flat = face.reshape(len(face), -1)
        field = rows[:, None] * np.repeat(columns, 3)
        cv2.multiply(flat, field, dst=flat, dtype=cv2.CV_8U)

    def _blur(self, face: Face, number: int) -> None:
        middle, radius = self._kernels.shape[1] // 2, self._radii[number]
        part = slice(middle - radius, middle + radius + 1)
        face[:] = cv2.filter2D(face, -1, self._kernels[number, part, part], borderType=cv2.BORDER_REPLICATE)

    def _add_noise(self, face: Face, strength: float, start: int) -> None:
        flat = face.reshape(len(face), -1)
        noise = self._bank[start : start + face.size].reshape(flat.shape)
        factor = strength / BANK_STD
        cv2.addWeighted(flat, 1.0, noise, factor, -128 * factor, dst=flat)

    def _compress(self, face: Face, quality: int) -> None:
        # OpenCV's files are BGR.
        picture = face[:, :, ::-1] if self._rgb else face
        _, data = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, quality))
        restored = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
        face[:] = restored[:, :, ::-1] if self._rgb else restored


def _gamma_table(exponent: float) -> NDArray[np.uint8]:
    levels = np.arange(256, dtype=np.float32) / 255
    return np.asarray(np.rint(255 * levels**exponent), np.uint8)


Floats = NDArray[np.float64]

_CORNERS = np.array([[0, SHAPE_SIDE, 0, SHAPE_SIDE], [0, 0, SHAPE_SIDE, SHAPE_SIDE]]) - 0.5
"""Outer corners of a shape's picture in its pixel indices, ``(2, 4)``."""


@dataclass(frozen=True, slots=True)
class _Patch:
    """One occlusion of one face, and the rectangle that it touches.

    Attributes:
        left: First column.
        top: First row.
        width: Columns.
        height: Rows.
        shape: Row of the shape bank.
        to_shape: ``(2, 3)`` from the rectangle's pixel indices to the shape's.
        opacity: Of the shape's 255.
        filling: ``(3, 4)`` from the donor's colours to the occlusion's.
        donor: Row of the cache; None where the occlusion is one colour.
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


def _patches(occlusions: Occlusions, size: int) -> dict[int, _Patch]:
    """The occlusions that are shown and touch their face, by the face's number; arithmetic for all of them at once.

    Args:
        occlusions: Of N faces.
        size: Side of the faces in pixels.
    """
    faces = np.flatnonzero(occlusions.shown)
    chosen = take_rows(occlusions, faces)
    places = np.linalg.inv(chosen.affines[:, :, :2]) @ (_CORNERS - chosen.affines[:, :, 2:])
    low = np.floor(places.min(axis=2)).clip(0, size).astype(np.int64)
    high = (np.ceil(places.max(axis=2)) + 1).clip(0, size).astype(np.int64)
    to_shape, to_donor = _from_corners(chosen.affines, low), _from_corners(chosen.skin, low)
    plain = (chosen.color * (1 - chosen.texture)[:, None])[:, :, None]
    filling = np.concatenate([np.eye(3) * chosen.texture[:, None, None], plain], axis=2)
    return {
        face: _Patch(
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


def _lay_patch(face: NDArray[np.uint8], patch: _Patch, crops: Crops) -> None:
    """Lay one occlusion over one face, in place.

    Args:
        face: ``(S, S, 3)``.
        patch: The occlusion.
        crops: ``(M, H, W, 3)``, the cache that donors come from.
    """
    within = (patch.width, patch.height)
    opacity = warp_picture(shape_bank()[patch.shape], patch.to_shape, within) * np.float32(patch.opacity / 255)
    if patch.donor is None:
        occlusion = np.empty((patch.height, patch.width, 3), np.uint8)
        occlusion[:] = np.rint(patch.filling[:, 3])
    else:
        occlusion = warp_picture(crops[patch.donor], patch.to_donor, within)
        cv2.transform(occlusion, patch.filling, dst=occlusion)
    part = face[patch.top : patch.top + patch.height, patch.left : patch.left + patch.width]
    part[:] = cv2.blendLinear(occlusion, part, opacity, 1 - opacity)


def _from_corners(affines: Floats, corners: NDArray[np.int64]) -> Floats:
    """The same maps, for parts of the results that begin at a corner, ``(N, 2)``."""
    origin = affines[:, :, :2] @ corners[:, :, None] + affines[:, :, 2:]
    return np.concatenate([affines[:, :, :2], origin], axis=2)
