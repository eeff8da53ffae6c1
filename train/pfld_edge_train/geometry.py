"""The geometric part of the augmentation: one affine map a face, drawn here, carried out by `augment.warp`."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_train.augment_config import AugmentConfig

__all__ = ["FaceFrames", "plain_frames", "random_frames", "warp_landmarks"]

Floats = NDArray[np.float64]

_FARTHEST = 3.0
"""Normal numbers are clipped to so many standard deviations: a face must not leave its crop."""


@dataclass(frozen=True, slots=True)
class FaceFrames:
    """Where the network's input lies in each cached crop.

    Attributes:
        matrices: ``(N, 2, 2)``: columns are the input's x and y axes, in pixels of the cached crop a full side.
        centers: ``(N, 2)``: the input's centre in pixels of the cached crop, pixel edges at integers.
        flipped: ``(N,)`` bool: the frame mirrors the face.
    """

    matrices: Floats
    centers: Floats
    flipped: NDArray[np.bool_]

    def affines(self, size: int) -> Floats:
        """Maps from the result's pixel indices to the cached crop's, ``(N, 2, 3)``.

        Pixel centres follow the runtime's crop: result pixel i samples ``(i + 0.5) / size`` of the frame.
        """
        linear = self.matrices / size
        # The result's pixel centres lie at i + 0.5 of the frame, those of the crop at integers + 0.5.
        origin = self.centers - self.matrices.sum(axis=2) / 2 + linear.sum(axis=2) / 2 - 0.5
        return np.concatenate([linear, origin[:, :, None]], axis=2)


def plain_frames(landmarks: NDArray[np.floating], known: NDArray[np.bool_], margin: float) -> FaceFrames:
    """The frames that the crop rule gives: a square around the landmarks' tight box.

    Args:
        landmarks: ``(N, P, 2)`` pixels of the cached crop.
        known: ``(N, P)``: which landmarks may be looked at; a face without any is boxed by all.
        margin: The crop rule's margin.
    """
    count = len(landmarks)
    basis = np.broadcast_to(np.eye(2), (count, 2, 2))
    centers, sides = _boxes(landmarks.astype(np.float64), known, margin)
    return FaceFrames(basis * sides[:, None, None], centers, np.zeros(count, np.bool_))


def random_frames(
    landmarks: NDArray[np.floating],
    known: NDArray[np.bool_],
    margin: float,
    config: AugmentConfig,
    generator: np.random.Generator,
) -> FaceFrames:
    """Choose a frame a face: turned, squeezed, mirrored, then boxed by the crop rule and put off as detectors err.

    The box is that of the *turned* landmarks: a turned face meets the network on a device in its own tight box.
    How many numbers are drawn depends on N alone, never on the strengths.

    Args:
        landmarks: As for `plain_frames`.
        known: As for `plain_frames`.
        margin: The crop rule's margin.
        config: Strengths.
        generator: Source of chance.
    """
    count = len(landmarks)
    basis, flipped = _random_basis(count, config, generator)
    # Landmarks as the turned frame sees them, still in pixels of the cached crop.
    seen = landmarks.astype(np.float64) @ np.linalg.inv(basis).transpose(0, 2, 1)
    centers, sides = _boxes(seen, known, margin)
    centers = centers + config.shift * _normal((count, 2), generator) * sides[:, None]
    sides = sides * np.exp(config.scale * _normal((count,), generator))
    return FaceFrames(basis * sides[:, None, None], (basis @ centers[:, :, None])[:, :, 0], flipped)


def warp_landmarks(
    landmarks: NDArray[np.floating], frames: FaceFrames, mirror: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Map landmarks into the frames.

    Args:
        landmarks: ``(N, P, 2)`` pixels of the cached crop, pixel edges at integers.
        frames: N frames.
        mirror: ``(P,)``, the scheme's mirror permutation, applied where a frame mirrors.

    Returns:
        ``(N, P, 2)`` fractions of the new crop.
    """
    local = (landmarks - frames.centers[:, None]) @ np.linalg.inv(frames.matrices).transpose(0, 2, 1) + 0.5
    fractions: NDArray[np.float32] = np.where(frames.flipped[:, None, None], local[:, mirror], local).astype(np.float32)
    return fractions


def _boxes(points: Floats, known: NDArray[np.bool_], margin: float) -> tuple[Floats, Floats]:
    """Centres ``(N, 2)`` and sides ``(N,)`` of the squares around the known points."""
    used = (known | ~known.any(axis=1, keepdims=True))[:, :, None]
    low = np.where(used, points, np.inf).min(axis=1)
    high = np.where(used, points, -np.inf).max(axis=1)
    # A face of one point must not have a frame of no size.
    return (low + high) / 2, np.maximum((high - low).max(axis=1), 1) * margin


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
