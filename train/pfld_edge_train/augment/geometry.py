"""The geometric part of the augmentation: one affine map a face, drawn here, carried out with OpenCV or torch.

A frame starts from the runtime's own crop of the face: the same integer window in the photograph and the same sampling
positions, computed by the same function. What lies outside the cached crop is black, as outside of a photograph.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pfld_edge_runtime import crop_windows
from pfld_edge_train.config import AugmentConfig

__all__ = [
    "FaceFrames",
    "plain_frames",
    "random_frames",
    "shrink_factors",
    "warp_landmarks",
    "warp_picture",
    "warp_pictures",
]

Floats = NDArray[np.float64]

_FARTHEST = 3.0
"""Normal numbers are clipped to so many standard deviations, so that a face can't leave its crop."""
_MOST_SAMPLES = 4
"""Samples a side of a result's pixel at most, where a picture is smoothed before it is shrunk."""
_HARDLY = 1.2
"""Shrinking by less than this needs no smoothing: bilinear sampling reads every pixel."""


@dataclass(frozen=True, slots=True)
class FaceFrames:
    """Where the network's input lies in N pictures: in photographs, or in cached crops of them.

    Attributes:
        matrices: ``(N, 2, 2)``: columns are the input's x and y axes, in pixels of the picture a full side.
        centers: ``(N, 2)``: the input's centre in pixels of the picture, pixel edges at integers.
        flipped: ``(N,)`` bool: the frame mirrors the face.
    """

    matrices: Floats
    centers: Floats
    flipped: NDArray[np.bool_]

    def within(self, windows: NDArray[np.int64], side: int) -> "FaceFrames":
        """Convert frames in photographs to frames in their cached crops.

        Args:
            windows: ``(N, 3)``, x, y and side of each crop's window in its photograph.
            side: Of the cached crops, in pixels.
        """
        scales = side / windows[:, 2]
        centers = (self.centers - windows[:, :2]) * scales[:, None]
        return FaceFrames(self.matrices * scales[:, None, None], centers, self.flipped)

    def affines(self, size: int) -> Floats:
        """Maps from the result's pixel indices to the picture's, ``(N, 2, 3)``.

        Pixel centres follow the runtime's crop: result pixel i samples ``(i + 0.5) / size`` of the frame.
        """
        linear = self.matrices / size
        # The result's pixel centres lie at i + 0.5 of the frame, those of the picture at integers + 0.5.
        origin = self.centers - self.matrices.sum(axis=2) / 2 + linear.sum(axis=2) / 2 - 0.5
        return np.concatenate([linear, origin[:, :, None]], axis=2)


def plain_frames(landmarks: NDArray[np.floating], known: NDArray[np.bool_], margin: float) -> FaceFrames:
    """Give the runtime's crop windows around the landmarks' tight boxes.

    Args:
        landmarks: ``(N, P, 2)`` photograph pixels.
        known: ``(N, P)``: the labelled landmarks; a face without any is boxed by all.
        margin: The crop rule's margin.
    """
    count = len(landmarks)
    centers, sides = _windows(landmarks.astype(np.float64), known, margin)
    return FaceFrames(np.eye(2) * sides[:, None, None], centers, np.zeros(count, np.bool_))


def random_frames(
    landmarks: NDArray[np.floating],
    known: NDArray[np.bool_],
    margin: float,
    config: AugmentConfig,
    generator: np.random.Generator,
) -> FaceFrames:
    """Choose a frame a face: rotated, sheared, mirrored, cut by the crop rule, shifted and scaled as detectors err.

    The window is that of the *rotated* landmarks: on a device, a rotated face is cut by its own tight box. How many
    numbers are drawn depends on N alone, never on the strengths.

    Args:
        landmarks: As for `plain_frames`.
        known: As for `plain_frames`.
        margin: The crop rule's margin.
        config: Strengths.
        generator: Source of chance.
    """
    count = len(landmarks)
    basis, flipped = _random_basis(count, config, generator)
    # Landmarks as the rotated frame sees them, still in pixels of the photograph.
    seen = landmarks.astype(np.float64) @ np.linalg.inv(basis).transpose(0, 2, 1)
    centers, sides = _windows(seen, known, margin)
    centers = centers + config.shift * _normal((count, 2), generator) * sides[:, None]
    sides = sides * np.exp(config.scale * _normal((count,), generator))
    return FaceFrames(basis * sides[:, None, None], (basis @ centers[:, :, None])[:, :, 0], flipped)


def warp_landmarks(
    landmarks: NDArray[np.floating], frames: FaceFrames, mirror: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Map landmarks into the frames.

    Args:
        landmarks: ``(N, P, 2)`` pixels of the frames' pictures, pixel edges at integers.
        frames: N frames.
        mirror: ``(P,)``, the scheme's mirror permutation, applied where a frame mirrors.

    Returns:
        ``(N, P, 2)`` fractions of the new crop.
    """
    local = (landmarks - frames.centers[:, None]) @ np.linalg.inv(frames.matrices).transpose(0, 2, 1) + 0.5
    fractions: NDArray[np.float32] = np.where(frames.flipped[:, None, None], local[:, mirror], local).astype(np.float32)
    return fractions


def _windows(points: Floats, known: NDArray[np.bool_], margin: float) -> tuple[Floats, Floats]:
    """Centres ``(N, 2)`` and sides ``(N,)`` of the runtime's windows around the known points' tight boxes."""
    used = (known | ~known.any(axis=1, keepdims=True))[:, :, None]
    low = np.floor(np.where(used, points, np.inf).min(axis=1))
    high = np.floor(np.where(used, points, -np.inf).max(axis=1)) + 1
    windows = crop_windows(np.concatenate([low, high], axis=1), margin)
    return windows.corners + windows.sizes[:, None] / 2, windows.sizes.astype(np.float64)


def _random_basis(
    count: int, config: AugmentConfig, generator: np.random.Generator
) -> tuple[Floats, NDArray[np.bool_]]:
    """Rotation times squeeze and slant times mirror, ``(N, 2, 2)``, and which are mirrored."""
    angle = _normal((count,), generator) * math.radians(config.rotation)
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.stack([cosine, -sine, sine, cosine], axis=1).reshape(count, 2, 2)
    squeeze = np.zeros((count, 2, 2))
    squeeze[:, 0, 0] = 1 + config.shear * generator.uniform(-1, 1, count)
    squeeze[:, 0, 1] = config.shear / 2 * generator.uniform(-1, 1, count)
    squeeze[:, 1, 1] = 1
    flipped = generator.random(count) < config.flip
    squeeze[:, :, 0] *= np.where(flipped, -1.0, 1.0)[:, None]
    return turn @ squeeze, flipped


def _normal(shape: tuple[int, ...], generator: np.random.Generator) -> Floats:
    """Normal numbers, clipped."""
    return generator.standard_normal(shape).clip(-_FARTHEST, _FARTHEST)


def shrink_factors(affines: NDArray[np.float64], smooth: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many samples a side each pixel of the result averages, ``(N,)``, 1 to 4.

    Args:
        affines: ``(N, 2, 3)`` from the result's pixel indices to the picture's.
        smooth: ``(N,)``: which may be smoothed at all.
    """
    steps = np.sqrt(np.square(affines[:, :, :2]).sum(axis=1)).max(axis=1)
    wanted = np.where(smooth & (steps > _HARDLY), np.ceil(steps), 1)
    return wanted.clip(1, _MOST_SAMPLES).astype(np.int64)


def warp_picture(
    picture: NDArray[np.uint8],
    affine: NDArray[np.float64],
    size: tuple[int, int],
    factor: int = 1,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Warp one picture with OpenCV.

    Args:
        picture: ``(H, W, 3)`` or ``(H, W)``.
        affine: ``(2, 3)`` from the result's pixel indices to the picture's.
        size: Width and height of the result.
        factor: Samples a side of each pixel.
        out: Where the result goes, C-contiguous; None for a new array.
    """
    fine = (size[0] * factor, size[1] * factor)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if factor == 1:
        return cv2.warpAffine(picture, affine, fine, dst=out, flags=flags)  # type: ignore[return-value]
    samples = cv2.warpAffine(picture, _finer(affine[None], factor)[0], fine, flags=flags)
    return cv2.resize(samples, size, dst=out, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def warp_pictures(pictures: Tensor, affines: NDArray[np.float64], size: int, factor: int = 1) -> Tensor:
    """Warp N pictures with torch.

    Args:
        pictures: ``(N, C, H, W)`` floating point.
        affines: ``(N, 2, 3)`` from the results' pixel indices to the pictures'.
        size: Side of the square results.
        factor: Samples a side of each pixel.

    Returns:
        ``(N, C, size, size)`` on the pictures' device.
    """
    height, width = pictures.shape[2:]
    # grid_sample counts from -1 to 1 over the pixels' outer edges.
    scale = np.array([2 / width, 2 / height])
    scaled = _finer(affines, factor) * scale[:, None]
    scaled[:, :, 2] += scale / 2 - 1
    maps = torch.from_numpy(scaled.astype(np.float32)).to(pictures.device)
    line = torch.arange(size * factor, dtype=torch.float32, device=pictures.device)
    rows = maps[:, None, None, :, 1] * line[:, None, None]
    columns = maps[:, None, None, :, 0] * line[:, None]
    grid = rows + columns + maps[:, None, None, :, 2]
    samples = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.avg_pool2d(samples, factor) if factor > 1 else samples


def _finer(affines: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """The same maps from the indices of a grid that is finer by a factor."""
    linear = affines[:, :, :2] / factor
    # A fine pixel i lies at (i + 0.5) / factor - 0.5 of the coarse grid.
    origin = affines[:, :, 2] + affines[:, :, :2].sum(axis=2) * (0.5 / factor - 0.5)
    return np.concatenate([linear, origin[:, :, None]], axis=2)
