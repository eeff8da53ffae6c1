"""Renders a plan with OpenCV, face by face, in bytes: the fastest way on a CPU.

A face of bytes stays in the processor's cache from crop to JPEG, and a change costs time only for the faces that get
it. `on_device` computes the same for a whole batch; tests compare the two.
"""

import cv2
import numpy as np

from pfld_edge_calib.datasets.prepared import Crops
from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_train.augment.geometry import supersampling, warp_picture
from pfld_edge_train.augment.occlusions import Occlusions, shape_bank
from pfld_edge_train.augment.photometry import BANK_STD, Photometry, blur_kernels, luma, noise_bank
from pfld_edge_train.augment.plan import AugmentPlan


def render_on_cpu(crops: Crops, plan: AugmentPlan, size: int, color_order: str) -> Uint8Array:
    """Crop and augment the N faces of a plan: ``(N, size, size, 3)`` uint8.

    Only the plan's rows of the cache ``(M, H, W, 3)`` are read. `color_order` is ``bgr`` or ``rgb``.
    """
    faces = np.empty((len(plan.rows), size, size, 3), np.uint8)
    affines = plan.frames.affines(size)
    change = plan.change
    if change is None:
        for face, row, affine in zip(faces, plan.rows, affines, strict=True):
            warp_picture(crops[row], affine, (size, size), out=face)
        return faces
    factors = supersampling(affines, change.smooth).tolist()
    camera = _Camera(change.photometry, size, color_order)
    for index, face in enumerate(faces):
        warp_picture(crops[plan.rows[index]], affines[index], (size, size), factors[index], out=face)
        for occlusions in change.occlusions:
            if occlusions.shown[index]:
                _occlude(face, occlusions, index, crops)
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

    def take(self, face: Uint8Array, index: int) -> None:
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

    def _light(self, face: Uint8Array, slopes: Float32Array) -> None:
        columns, rows = np.exp(slopes[0] * self._line), np.exp(slopes[1] * self._line)
        # Columns and channels as one axis: numpy's and OpenCV's loops are then long.
        flat = face.reshape(len(face), -1)
        field = rows[:, None] * np.repeat(columns, 3)
        cv2.multiply(flat, field, dst=flat, dtype=cv2.CV_8U)

    def _blur(self, face: Uint8Array, number: int) -> None:
        middle, radius = self._kernels.shape[1] // 2, self._radii[number]
        part = slice(middle - radius, middle + radius + 1)
        face[:] = cv2.filter2D(face, -1, self._kernels[number, part, part], borderType=cv2.BORDER_REPLICATE)

    def _add_noise(self, face: Uint8Array, strength: float, start: int) -> None:
        flat = face.reshape(len(face), -1)
        noise = self._bank[start : start + face.size].reshape(flat.shape)
        factor = strength / BANK_STD
        cv2.addWeighted(flat, 1.0, noise, factor, -128 * factor, dst=flat)

    def _compress(self, face: Uint8Array, quality: int) -> None:
        # OpenCV's files are BGR.
        picture = face[:, :, ::-1] if self._rgb else face
        _, data = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, quality))
        restored = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
        face[:] = restored[:, :, ::-1] if self._rgb else restored


def _gamma_table(exponent: float) -> Uint8Array:
    levels = np.arange(256, dtype=np.float32) / 255
    return np.asarray(np.rint(255 * levels**exponent), np.uint8)


def _occlude(face: Uint8Array, occlusions: Occlusions, index: int, crops: Crops) -> None:
    """Draw one layer of occlusions onto a face ``(S, S, 3)``, in place."""
    size, texture = (len(face), len(face)), float(occlusions.texture[index])
    opacity = warp_picture(shape_bank()[occlusions.shape[index]], occlusions.affines[index], size)
    opacity = opacity * np.float32(occlusions.opacity[index] / 255)
    occlusion = np.empty_like(face)
    occlusion[:] = np.rint(occlusions.color[index])
    if texture > 0:
        skin = warp_picture(crops[occlusions.donor[index]], occlusions.skin[index], size)
        cv2.addWeighted(skin, texture, occlusion, 1 - texture, 0, dst=occlusion)
    face[:] = cv2.blendLinear(occlusion, face, opacity, 1 - opacity)
