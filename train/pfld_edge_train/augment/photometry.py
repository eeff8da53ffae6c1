"""Photometric augmentation: what light and camera do to each face, drawn as numbers.

`on_cpu` and `on_device` carry them out. Blur kernels, low resolution and noise are defined here for both. Low
resolution is a matrix, since shrinking by area and growing bilinearly are linear along each axis. Noise is a bank that
each face reads from a random place: the same on every device, and cheaper than drawing.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pfld_edge_train.config import AugmentConfig

__all__ = [
    "BANK_STARTS",
    "BANK_STD",
    "Photometry",
    "blur_kernels",
    "draw_photometry",
    "noise_bank",
    "resolution_matrices",
]

Floats = NDArray[np.float32]

_FARTHEST = {1: 1.0, 2: 2.5, 3: 1.0}
"""Where each kind of kernel ends, as a multiple of its reach."""
BANK_STARTS = 1 << 20
"""How many places a face's noise may begin at."""
BANK_STD = 32.0
"""Standard deviation of the bank in grey levels."""
_LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True)
class Photometry:
    """What happens to the pixels of N faces, in this order.

    Attributes:
        gamma: ``(N,)`` exponent on grey levels as fractions of 255; 1 for none.
        gain: ``(N, 3)`` factor on each channel after that.
        offset: ``(N, 3)`` grey levels added to it.
        slopes: ``(N, 2)`` logarithm of the light's gain from the middle to the right and to the lower edge; 0 for none.
        blur_kind: ``(N,)`` 0 none, 1 motion, 2 Gaussian, 3 a disc.
        blur_reach: ``(N,)`` half the way, the standard deviation, or the radius, in 112ths of the side.
        blur_angle: ``(N,)`` direction of the motion in radians.
        narrow: ``(N,)`` side in pixels to which the face shrinks and from which it grows again; 0 for none.
        noise: ``(N,)`` standard deviation in grey levels; 0 for none.
        noise_start: ``(N,)`` where in the noise bank the face's noise begins.
        gray: ``(N,)`` bool.
        jpeg: ``(N,)`` JPEG quality, 1 to 100; 0 for none.
    """

    gamma: Floats
    gain: Floats
    offset: Floats
    slopes: Floats
    blur_kind: NDArray[np.int64]
    blur_reach: Floats
    blur_angle: Floats
    narrow: NDArray[np.int64]
    noise: Floats
    noise_start: NDArray[np.int64]
    gray: NDArray[np.bool_]
    jpeg: NDArray[np.int64]


def luma(color_order: str) -> Floats:
    """Shares of the channels in grey, ``(3,)``, in a contract's colour order."""
    return np.array(_LUMA if color_order == "rgb" else _LUMA[::-1], np.float32)


def draw_photometry(
    count: int, size: int, color_order: str, config: AugmentConfig, generator: np.random.Generator
) -> Photometry:
    """Draw the photometry of N faces; how many numbers are drawn depends on N alone, never on the strengths.

    Args:
        count: N.
        size: Side of the faces in pixels.
        color_order: The contract's, ``bgr`` or ``rgb``.
        config: Strengths.
        generator: Source of chance.
    """
    dark = generator.random(count) < config.darkness
    gamma = np.exp(config.gamma * _either_side(count, generator)) ** (generator.random(count) < 0.5)
    gain, offset = _tones(count, color_order, dark, config, generator)
    lit = generator.random(count) < 0.5
    slopes = config.light * generator.uniform(-1, 1, (count, 2)) * lit[:, None]
    kind, reach, angle = _blurs(count, config, generator)
    narrow = np.rint(size * generator.uniform(0.18, 0.7, count)) * (generator.random(count) < config.low_resolution)
    strength = np.square(generator.random(count)) * (generator.random(count) < 0.5)
    noise = config.noise * np.where(dark, generator.uniform(0.3, 1, count), strength)
    start = generator.integers(BANK_STARTS, size=count)
    gray = generator.random(count) < config.gray
    jpeg = np.rint(generator.uniform(12, 90, count)) * (generator.random(count) < config.jpeg)
    return Photometry(
        gamma=gamma.astype(np.float32),
        gain=gain,
        offset=offset,
        slopes=slopes.astype(np.float32),
        blur_kind=kind,
        blur_reach=reach,
        blur_angle=angle,
        narrow=narrow.astype(np.int64),
        noise=noise.astype(np.float32),
        noise_start=start,
        gray=gray,
        jpeg=jpeg.astype(np.int64),
    )


def _tones(
    count: int, color_order: str, dark: NDArray[np.bool_], config: AugmentConfig, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    """Gain and offset ``(N, 3)`` of contrast, brightness, colour cast, temperature and darkness together."""
    contrast = np.exp(0.8 * config.light * _either_side(count, generator))
    brightness = 80 * config.light * _either_side(count, generator)
    cast = np.exp(config.color * generator.uniform(-1, 1, (count, 3)))
    warmth = (
        config.temperature
        * _either_side(count, generator)[:, None]
        * ((1, 0, -1) if color_order == "rgb" else (-1, 0, 1))
    )
    exposure = np.where(dark, generator.uniform(0.2, 0.6, count), 1.0)
    gain = cast * np.exp(warmth) * (contrast * exposure)[:, None]
    # Contrast turns about middle grey, so that it does not brighten or darken by itself.
    offset = (127.5 * (1 - contrast) + brightness) * exposure
    return gain.astype(np.float32), np.repeat(offset[:, None], 3, axis=1).astype(np.float32)


def _blurs(
    count: int, config: AugmentConfig, generator: np.random.Generator
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Kind, reach and angle; a face that moved is not out of focus besides."""
    chance, strength = generator.random(count), generator.random(count)
    disc = generator.random(count) < 0.5
    angle = generator.uniform(0, np.pi, count)
    moved = chance < config.blur
    unfocused = ~moved & (chance < config.blur + config.defocus)
    kind = np.select([moved, unfocused & disc, unfocused], [1, 3, 2], 0)
    reach = np.select([kind == 1, kind == 2, kind == 3], [1 + 4 * strength, 0.6 + 1.4 * strength, 1 + 2 * strength], 0)
    return kind.astype(np.int64), reach.astype(np.float32), angle.astype(np.float32)


def _either_side(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    return generator.uniform(-1, 1, count)


def blur_kernels(photometry: Photometry, size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw the kernels of those faces that have one.

    Args:
        photometry: Of N faces, B of them blurred (`blur_kind` above 0).
        size: Side of the faces in pixels.

    Returns:
        Kernels ``(B, K, K)`` that sum to 1, K odd and large enough for all, and for each the radius ``(B,)`` beyond
        which it is zero.
    """
    chosen = photometry.blur_kind > 0
    kind, angle = photometry.blur_kind[chosen], photometry.blur_angle[chosen]
    reach = photometry.blur_reach[chosen] * size / 112
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


@lru_cache(maxsize=8)
def resolution_matrices(size: int) -> NDArray[np.float32]:
    """Matrices that shrink a line and let it grow again, with OpenCV's sampling positions.

    Args:
        size: Pixels in the line.

    Returns:
        ``(size + 1, size, size)``: matrix ``k`` goes through k pixels; matrix 0 is the identity.
    """
    matrices = np.empty((size + 1, size, size), np.float32)
    matrices[0] = np.eye(size)
    for narrow in range(1, size + 1):
        matrices[narrow] = _grow(narrow, size) @ _shrink(size, narrow)
    return matrices


def _shrink(size: int, narrow: int) -> NDArray[np.float64]:
    """``(narrow, size)``: each short pixel is the mean of what it covers."""
    ends = np.arange(narrow + 1) * (size / narrow)
    pixels = np.arange(size)
    cover = np.minimum(ends[1:, None], pixels + 1) - np.maximum(ends[:-1, None], pixels)
    shares: NDArray[np.float64] = cover.clip(0, None) * (narrow / size)
    return shares


def _grow(narrow: int, size: int) -> NDArray[np.float64]:
    """``(size, narrow)``: bilinear between pixel centres, the edges repeated."""
    place = ((np.arange(size) + 0.5) * narrow / size - 0.5).clip(0, narrow - 1)
    weights: NDArray[np.float64] = 1 - np.abs(place[:, None] - np.arange(narrow))
    return weights.clip(0, None)


@lru_cache(maxsize=4)
def noise_bank(face_values: int) -> NDArray[np.uint8]:
    """Gaussian noise around 128, cut off at four standard deviations.

    Args:
        face_values: Pixels times channels of a face.

    Returns:
        ``(BANK_STARTS + face_values,)``; the same in every process.
    """
    normal = np.random.default_rng(2019).standard_normal(BANK_STARTS + face_values, dtype=np.float32)
    bank: NDArray[np.uint8] = np.rint(128 + BANK_STD * normal).clip(0, 255).astype(np.uint8)
    bank.setflags(write=False)
    return bank
