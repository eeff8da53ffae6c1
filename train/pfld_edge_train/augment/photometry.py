"""Photometric augmentation, drawn as numbers; `on_cpu` and `on_device` apply them.

Blur kernels, low resolution and noise are defined here for both. Low resolution is a matrix, since shrinking by area
and bilinear growing are linear along each axis. Noise is read from a random place of a fixed array: the same on every
device, and cheaper than drawing.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from pfld_edge_runtime.arrays import BoolArray, Float32Array, Int64Array, Uint8Array
from pfld_edge_train.config import AugmentConfig

_FARTHEST = {1: 1.0, 2: 2.5, 3: 1.0}
"""Radius of each kind of kernel, as a multiple of its reach."""
BANK_STARTS = 1 << 20
"""Number of places in the noise bank at which a face's noise may begin."""
BANK_STD = 32.0
"""Standard deviation of the noise bank in grey levels."""
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True)
class Photometry:
    """Photometric changes of N faces, in this order.

    Attributes:
        gamma: ``(N,)`` exponent on grey levels as fractions of 255; 1 for none.
        gain: ``(N, 3)`` factor on each channel after that.
        offset: ``(N, 3)`` grey levels added to it.
        slopes: ``(N, 2)`` logarithm of the light's gain from the middle to the right and to the lower edge; 0 for none.
        blur_kind: ``(N,)`` 0 none, 1 motion, 2 Gaussian, 3 a disc.
        blur_reach: ``(N,)`` half the path, the standard deviation, or the radius, in 112ths of the side.
        blur_angle: ``(N,)`` direction of the motion in radians.
        narrow: ``(N,)`` side in pixels to which the face is shrunk before it is enlarged again; 0 for none.
        noise: ``(N,)`` standard deviation in grey levels; 0 for none.
        noise_start: ``(N,)`` index in the noise bank.
        gray: ``(N,)`` bool.
        jpeg: ``(N,)`` JPEG quality, 1 to 100; 0 for none.
    """

    gamma: Float32Array
    gain: Float32Array
    offset: Float32Array
    slopes: Float32Array
    blur_kind: Int64Array
    blur_reach: Float32Array
    blur_angle: Float32Array
    narrow: Int64Array
    noise: Float32Array
    noise_start: Int64Array
    gray: BoolArray
    jpeg: Int64Array


def luma(color_order: str) -> Float32Array:
    """Weights of the channels in grey, ``(3,)``, in a contract's colour order."""
    return np.array(_LUMA if color_order == "rgb" else _LUMA[::-1], np.float32)


def draw_photometry(
    count: int, size: int, color_order: str, config: AugmentConfig, generator: np.random.Generator
) -> Photometry:
    """Draw the photometry of `count` faces of `size` pixels in the contract's colour order.

    How many numbers are drawn depends on `count` alone, never on the strengths.
    """
    dark = generator.random(count) < config.darkness
    gamma = np.exp(config.gamma * generator.uniform(-1, 1, count)) ** (generator.random(count) < 0.5)
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
    count: int, color_order: str, dark: BoolArray, config: AugmentConfig, generator: np.random.Generator
) -> tuple[Float32Array, Float32Array]:
    """Gain and offset ``(N, 3)`` of contrast, brightness, colour cast, temperature and darkness together."""
    contrast = np.exp(0.8 * config.light * generator.uniform(-1, 1, count))
    brightness = 80 * config.light * generator.uniform(-1, 1, count)
    cast = np.exp(config.color * generator.uniform(-1, 1, (count, 3)))
    warmest = np.array((1, 0, -1) if color_order == "rgb" else (-1, 0, 1))
    warmth = config.temperature * generator.uniform(-1, 1, count)[:, None] * warmest
    exposure = np.where(dark, generator.uniform(0.2, 0.6, count), 1.0)
    gain = cast * np.exp(warmth) * (contrast * exposure)[:, None]
    # Contrast keeps middle grey, so that it doesn't change the brightness.
    offset = (127.5 * (1 - contrast) + brightness) * exposure
    return gain.astype(np.float32), np.repeat(offset[:, None], 3, axis=1).astype(np.float32)


def _blurs(
    count: int, config: AugmentConfig, generator: np.random.Generator
) -> tuple[Int64Array, Float32Array, Float32Array]:
    """Kind, reach and angle; a face has motion blur or defocus, not both."""
    chance, strength = generator.random(count), generator.random(count)
    disc = generator.random(count) < 0.5
    angle = generator.uniform(0, np.pi, count)
    moved = chance < config.blur
    unfocused = ~moved & (chance < config.blur + config.defocus)
    kind = np.select([moved, unfocused & disc, unfocused], [1, 3, 2], 0)
    reach = np.select([kind == 1, kind == 2, kind == 3], [1 + 4 * strength, 0.6 + 1.4 * strength, 1 + 2 * strength], 0)
    return kind.astype(np.int64), reach.astype(np.float32), angle.astype(np.float32)


def blur_kernels(photometry: Photometry, size: int) -> tuple[Float32Array, Int64Array]:
    """Make the kernels of the B blurred faces of `size` pixels.

    They are ``(B, K, K)`` and sum to 1; K is odd and large enough for all. Beyond its radius ``(B,)`` each is zero.
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
    kernels *= np.maximum(np.abs(line), np.abs(line[:, None])) <= radii[:, None, None]
    kernels /= kernels.sum(axis=(1, 2), keepdims=True)
    return kernels.astype(np.float32), radii


def resolution_matrices(size: int) -> Float32Array:
    """Matrices that shrink a line of `size` pixels by area and enlarge it again bilinearly, as OpenCV does.

    Of the ``(size + 1, size, size)`` matrix ``k`` goes through k pixels; matrix 0 is the identity.
    """
    identity = np.eye(size, dtype=np.float32)
    shrunk = [cv2.resize(identity, (size, narrow), interpolation=cv2.INTER_AREA) for narrow in range(1, size + 1)]
    return np.stack([identity, *(cv2.resize(lines, (size, size)) for lines in shrunk)])


@lru_cache(maxsize=4)
def noise_bank(face_values: int) -> Uint8Array:
    """Gaussian noise around 128, clipped at four standard deviations: ``(BANK_STARTS + face_values,)``."""
    normal = np.random.default_rng(2019).standard_normal(BANK_STARTS + face_values, dtype=np.float32)
    bank: Uint8Array = np.rint(128 + BANK_STD * normal).clip(0, 255).astype(np.uint8)
    bank.setflags(write=False)
    return bank
