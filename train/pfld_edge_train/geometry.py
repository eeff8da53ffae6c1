"""The geometric part of the augmentation: one affine map a face."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfld_edge_train.augment_config import AugmentConfig

__all__ = ["FaceFrames", "random_frames", "warp_faces", "warp_landmarks"]


@dataclass(frozen=True, slots=True)
class FaceFrames:
    """Where the network's input lies in each cached crop.

    Attributes:
        matrices: ``(N, 2, 2)``: columns are the input's x and y axes, in pixels of the cached crop a full side.
        centers: ``(N, 2)``: the input's centre in pixels of the cached crop.
        flipped: ``(N,)`` bool: the frame mirrors the face.
    """

    matrices: Tensor
    centers: Tensor
    flipped: Tensor


def random_frames(
    landmarks: Tensor, margin: float, config: AugmentConfig | None, generator: torch.Generator | None = None
) -> FaceFrames:
    """Choose a frame a face: turned, squeezed, mirrored, then boxed by the crop rule and put off as detectors err.

    The box is that of the *turned* landmarks: a turned face meets the network on a device in its own tight box.

    Args:
        landmarks: ``(N, P, 2)`` pixels of the cached crop.
        margin: The crop rule's margin.
        config: Strengths; None for the plain crop.
        generator: Source of chance.
    """
    count = len(landmarks)
    if config is None:
        basis = torch.eye(2).expand(count, 2, 2)
        flipped = torch.zeros(count, dtype=torch.bool)
    else:
        basis, flipped = _random_basis(count, config, generator)
    # Landmarks as the turned frame sees them, still in pixels of the cached crop.
    seen = landmarks @ torch.linalg.inv(basis).mT
    low, high = seen.amin(dim=1), seen.amax(dim=1)
    side = (high - low).amax(dim=1) * margin
    center = (low + high) / 2
    if config is not None:
        side_factor = 1 + _uniform((count,), config.scale, generator)
        center = center + _uniform((count, 2), config.shift, generator) * side[:, None]
        side = side * side_factor
    return FaceFrames(basis * side[:, None, None], (basis @ center[:, :, None])[:, :, 0], flipped)


def warp_faces(crops: NDArray[np.uint8], frames: FaceFrames, size: int) -> Tensor:
    """Cut the frames out of the cached crops with OpenCV, which on a CPU is ten times faster than `grid_sample`.

    Pixel centres follow OpenCV's resize: output pixel i samples ``(i + 0.5) / size`` of the frame.

    Args:
        crops: ``(N, S, S, 3)``.
        frames: N frames.
        size: Side of the result in pixels.

    Returns:
        ``(N, 3, size, size)`` float32 grey levels.
    """
    linear = frames.matrices.numpy() / size
    # Output pixel centres lie at i + 0.5 of the frame, source pixel centres at integers + 0.5 of the crop.
    origin = frames.centers.numpy() - frames.matrices.numpy().sum(axis=2) / 2 + linear.sum(axis=2) / 2 - 0.5
    faces = np.empty((len(crops), size, size, 3), np.uint8)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for face, crop, matrix, start in zip(faces, crops, linear, origin, strict=True):
        affine = np.concatenate([matrix, start[:, None]], axis=1)
        face[:] = cv2.warpAffine(np.ascontiguousarray(crop), affine, (size, size), flags=flags)
    return torch.from_numpy(faces).permute(0, 3, 1, 2).float()


def warp_landmarks(landmarks: Tensor, frames: FaceFrames, mirror: Tensor) -> Tensor:
    """Map landmarks into the frames.

    Args:
        landmarks: ``(N, P, 2)`` pixels of the cached crop, pixel edges at integers.
        frames: N frames.
        mirror: ``(P,)`` int64, the scheme's mirror permutation, applied where a frame mirrors.

    Returns:
        ``(N, P, 2)`` fractions of the new crop.
    """
    local = (landmarks - frames.centers[:, None]) @ torch.linalg.inv(frames.matrices).mT + 0.5
    return torch.where(frames.flipped[:, None, None], local[:, mirror], local)


def _random_basis(count: int, config: AugmentConfig, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Rotation times squeeze and shear times mirror, ``(N, 2, 2)``, and which are mirrored."""
    angle = torch.randn(count, generator=generator).clamp(-3, 3) * math.radians(config.rotation)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    turn = torch.stack([cosine, -sine, sine, cosine], dim=1).view(count, 2, 2)
    squeeze = torch.zeros(count, 2, 2)
    squeeze[:, 0, 0] = 1 + _uniform((count,), config.shear, generator)
    squeeze[:, 0, 1] = _uniform((count,), config.shear / 2, generator)
    squeeze[:, 1, 1] = 1
    flipped = torch.rand(count, generator=generator) < config.flip
    squeeze[:, :, 0] *= torch.where(flipped, -1.0, 1.0)[:, None]
    return turn @ squeeze, flipped


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers from -bound to bound."""
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound
