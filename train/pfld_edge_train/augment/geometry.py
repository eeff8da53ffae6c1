"""Geometric augmentation: one affine map for each face, drawn with numpy, applied with OpenCV or torch.

A frame starts from the runtime's crop: the same integer window around the same tight box, and the same sampling
positions. What lies outside the cached crop is black, as outside of a photograph.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pfld_edge_runtime import crop_windows, tight_box
from pfld_edge_runtime.arrays import BoolArray, Float32Array, Float64Array, Int64Array, Uint8Array
from pfld_edge_train.config import AugmentConfig

_CLIP = 3.0
"""Normal numbers are clipped to so many standard deviations, so that a face stays in its crop."""
_MOST_SAMPLES = 4
"""Most samples along each side of a pixel, where a picture is antialiased."""
_LEAST_SHRINKING = 1.2
"""Below this factor bilinear sampling reads every pixel, and antialiasing is not needed."""


@dataclass(frozen=True, slots=True)
class FaceFrames:
    """Where the network's input lies in N pictures, photographs or cached crops of them, and where it is mirrored.

    Columns of the matrices ``(N, 2, 2)`` are the input's x and y axes, in pixels of the picture for a full side. The
    centres ``(N, 2)`` are in pixels, whose edges lie at integers.
    """

    matrices: Float64Array
    centers: Float64Array
    flipped: BoolArray

    def within(self, windows: Int64Array, side: int) -> "FaceFrames":
        """Convert frames in photographs to frames in cached crops.

        `windows` ``(N, 3)`` are x, y and side of each crop's window in its photograph, `side` the crops' in pixels.
        """
        scales = side / windows[:, 2]
        centers = (self.centers - windows[:, :2]) * scales[:, None]
        return FaceFrames(self.matrices * scales[:, None, None], centers, self.flipped)

    def affines(self, size: int) -> Float64Array:
        """Maps from the pixel indices of a result of `size` pixels to the picture's, ``(N, 2, 3)``.

        As in the runtime's crop, result pixel i samples ``(i + 0.5) / size`` of the frame.
        """
        linear = self.matrices / size
        origin = self.centers - self.matrices.sum(axis=2) / 2 + linear.sum(axis=2) / 2 - 0.5
        return np.concatenate([linear, origin[:, :, None]], axis=2)


def plain_frames(landmarks: NDArray[np.floating], known: BoolArray, margin: float) -> FaceFrames:
    """Give the runtime's crop windows around the landmarks' tight boxes.

    `landmarks` are ``(N, P, 2)`` photograph pixels, `known` ``(N, P)`` tells which are labelled (a face without any is
    boxed by all), `margin` is the crop rule's.
    """
    centers, sides = _windows(landmarks.astype(np.float64), known, margin)
    return FaceFrames(np.eye(2) * sides[:, None, None], centers, np.zeros(len(landmarks), np.bool_))


def random_frames(
    landmarks: NDArray[np.floating],
    known: BoolArray,
    margin: float,
    config: AugmentConfig,
    generator: np.random.Generator,
) -> FaceFrames:
    """Draw a frame for each face: rotation, shear, flip, the crop rule, then a detector's errors in place and size.

    The window is that of the *rotated* landmarks: on a device a rotated face is cropped by its own tight box. How many
    numbers are drawn depends on N alone, never on the strengths. Arguments as for `plain_frames`.
    """
    count = len(landmarks)
    basis, flipped = _random_basis(count, config, generator)
    # Landmarks as the rotated frame sees them, still in pixels of the photograph.
    seen = landmarks.astype(np.float64) @ np.linalg.inv(basis).transpose(0, 2, 1)
    # As in a photograph, coordinates are positive: `tight_box` truncates.
    origin = np.floor(np.nanmin(seen, axis=1)) * (basis != np.eye(2)).any(axis=(1, 2))[:, None]
    centers, sides = _windows(seen - origin[:, None], known, margin)
    centers = centers + origin + config.shift * _normal((count, 2), generator) * sides[:, None]
    sides = sides * np.exp(config.scale * _normal((count,), generator))
    return FaceFrames(basis * sides[:, None, None], (basis @ centers[:, :, None])[:, :, 0], flipped)


def warp_landmarks(landmarks: NDArray[np.floating], frames: FaceFrames, mirror: Int64Array) -> Float32Array:
    """Map ``(N, P, 2)`` pixels of the pictures to ``(N, P, 2)`` fractions of their frames.

    `mirror` ``(P,)`` is the scheme's mirror permutation, applied where a frame mirrors.
    """
    local = (landmarks - frames.centers[:, None]) @ np.linalg.inv(frames.matrices).transpose(0, 2, 1) + 0.5
    return np.asarray(np.where(frames.flipped[:, None, None], local[:, mirror], local), np.float32)


def _windows(points: Float64Array, known: BoolArray, margin: float) -> tuple[Float64Array, Float64Array]:
    """Centres ``(N, 2)`` and sides ``(N,)`` of the runtime's windows around the known points' tight boxes."""
    known = known | ~known.any(axis=1, keepdims=True)
    # An unlabelled point moves to a labelled one, where it doesn't change the box.
    first = points[np.arange(len(points)), known.argmax(axis=1)]
    windows = crop_windows(tight_box(np.where(known[:, :, None], points, first[:, None])), margin)
    return windows.corners + windows.sizes[:, None] / 2, windows.sizes.astype(np.float64)


def _random_basis(count: int, config: AugmentConfig, generator: np.random.Generator) -> tuple[Float64Array, BoolArray]:
    """Rotation times shear times flip, ``(N, 2, 2)``, and which faces are flipped."""
    angle = _normal((count,), generator) * math.radians(config.rotation)
    cosine, sine = np.cos(angle), np.sin(angle)
    rotation = np.stack([cosine, -sine, sine, cosine], axis=1).reshape(count, 2, 2)
    shear = np.zeros((count, 2, 2))
    shear[:, 0, 0] = 1 + config.shear * generator.uniform(-1, 1, count)
    shear[:, 0, 1] = config.shear / 2 * generator.uniform(-1, 1, count)
    shear[:, 1, 1] = 1
    flipped = generator.random(count) < config.flip
    shear[:, :, 0] *= np.where(flipped, -1.0, 1.0)[:, None]
    return rotation @ shear, flipped


def _normal(shape: tuple[int, ...], generator: np.random.Generator) -> Float64Array:
    return generator.standard_normal(shape).clip(-_CLIP, _CLIP)


def supersampling(affines: Float64Array, antialiased: BoolArray) -> Int64Array:
    """How many samples along each side a result's pixel averages, ``(N,)``, 1 to 4; 1 where not `antialiased`.

    `affines` ``(N, 2, 3)`` map the result's pixel indices to the picture's.
    """
    steps = np.sqrt(np.square(affines[:, :, :2]).sum(axis=1)).max(axis=1)
    wanted = np.where(antialiased & (steps > _LEAST_SHRINKING), np.ceil(steps), 1)
    return wanted.clip(1, _MOST_SAMPLES).astype(np.int64)


def warp_picture(
    picture: Uint8Array,
    affine: Float64Array,
    size: tuple[int, int],
    samples: int = 1,
    out: Uint8Array | None = None,
) -> Uint8Array:
    """Warp one picture ``(H, W, 3)`` or ``(H, W)`` with OpenCV.

    `affine` ``(2, 3)`` maps the result's pixel indices to the picture's, `size` is the result's width and height,
    `samples` those along each side of a pixel. The result goes into `out`, C-contiguous, if given.
    """
    fine = (size[0] * samples, size[1] * samples)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if samples == 1:
        return cv2.warpAffine(picture, affine, fine, dst=out, flags=flags)  # type: ignore[return-value]
    large = cv2.warpAffine(picture, _finer(affine[None], samples)[0], fine, flags=flags)
    return cv2.resize(large, size, dst=out, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def warp_pictures(pictures: Tensor, affines: Float64Array, size: int, samples: int = 1) -> Tensor:
    """Warp ``(N, C, H, W)`` floating-point pictures with torch to ``(N, C, size, size)`` on their device.

    `affines` ``(N, 2, 3)`` map the results' pixel indices to the pictures', `samples` as for `warp_picture`.
    """
    height, width = pictures.shape[2:]
    # grid_sample counts from -1 to 1 over the pixels' outer edges.
    scale = np.array([2 / width, 2 / height])
    scaled = _finer(affines, samples) * scale[:, None]
    scaled[:, :, 2] += scale / 2 - 1
    maps = torch.from_numpy(scaled.astype(np.float32)).to(pictures.device)
    line = torch.arange(size * samples, dtype=torch.float32, device=pictures.device)
    rows = maps[:, None, None, :, 1] * line[:, None, None]
    columns = maps[:, None, None, :, 0] * line[:, None]
    grid = rows + columns + maps[:, None, None, :, 2]
    found = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.avg_pool2d(found, samples) if samples > 1 else found


def _finer(affines: Float64Array, factor: int) -> Float64Array:
    """The same maps from the indices of a grid that is finer by a factor."""
    linear = affines[:, :, :2] / factor
    # Fine pixel i lies at (i + 0.5) / factor - 0.5 of the coarse grid.
    origin = affines[:, :, 2] + affines[:, :, :2].sum(axis=2) * (0.5 / factor - 0.5)
    return np.concatenate([linear, origin[:, :, None]], axis=2)
