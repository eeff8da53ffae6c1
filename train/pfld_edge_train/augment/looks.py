"""Draws what light and camera do to each face, as numbers; `on_cpu` and `on_device` carry them out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_train.augment_config import AugmentConfig

__all__ = ["Looks", "draw_looks"]

Floats = NDArray[np.float32]

_LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True)
class Looks:
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


def draw_looks(
    count: int, size: int, color_order: str, noise_bank: int, config: AugmentConfig, generator: np.random.Generator
) -> Looks:
    """Draw the looks of N faces; how many numbers are drawn depends on N alone, never on the strengths.

    Args:
        count: N.
        size: Side of the faces in pixels.
        color_order: The contract's, ``bgr`` or ``rgb``.
        noise_bank: How many starts the noise bank has.
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
    start = generator.integers(noise_bank, size=count)
    gray = generator.random(count) < config.gray
    jpeg = np.rint(generator.uniform(12, 90, count)) * (generator.random(count) < config.jpeg)
    return Looks(
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
