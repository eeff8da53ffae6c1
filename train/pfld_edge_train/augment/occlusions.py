"""Occlusions: rectangles, ellipses, blobs and hands anywhere, masks and scarves on the lower face, glasses.

A shape is a small picture of opacity, drawn once and laid over faces by affine maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from pfld_edge_runtime.arrays import BoolArray, Float32Array, Float64Array, Int64Array, Uint8Array
from pfld_edge_train.augment.geometry import FaceFrames
from pfld_edge_train.config import AugmentConfig

SHAPE_SIDE = 64
"""Side of a shape's picture in pixels. Its unit square, -1 to 1 along each axis, leaves a rim of one pixel free."""
_FINE = 8
"""Shapes are drawn so much larger, and shrunk for soft edges."""
_RIM = 1 - 2 / SHAPE_SIDE
"""Share of a shape's picture that its unit square takes."""
_SMALLEST_EYES = 0.2
"""Eye distance, as a share of the crop, below which it doesn't tell the roll: a profile."""
_BLOBS, _HANDS = 6, 5
THINGS = range(2 + _BLOBS + _HANDS)
"""Shapes that lie anywhere: rectangle, ellipse, blobs, hands."""
MASKS = range(THINGS.stop, THINGS.stop + 3)
"""Shapes for the lower face: two masks, a scarf."""
GLASSES = range(MASKS.stop, MASKS.stop + 3)
"""Shapes for the eyes: a bar, two dark lenses, angular ones."""


@lru_cache(maxsize=1)
def shape_bank() -> Uint8Array:
    """All shapes, ``(K, SHAPE_SIDE, SHAPE_SIDE)``: 255 is opaque; the same in every process."""
    random = np.random.default_rng(2019)
    outlines = [[_rounded(0.0, 20.0)], [_rounded(0.0, 2.0)]]
    outlines += [[_blob(random)] for _ in range(_BLOBS)]
    outlines += [_hand(random) for _ in range(_HANDS)]
    outlines += [[_mask(0.55)], [_mask(0.25)], [_scarf(random)]]
    outlines += [[_rounded(0.0, 20.0)], _lenses(2.5), _lenses(6.0)]
    bank = np.stack([_drawn(outline) for outline in outlines])
    bank.setflags(write=False)
    return bank


def _drawn(outlines: list[Float64Array]) -> Uint8Array:
    """Fill outlines of the unit square."""
    side = SHAPE_SIDE * _FINE
    picture = np.zeros((side, side), np.uint8)
    for outline in outlines:
        pixels = (outline * (side / 2 - _FINE) + side / 2).round().astype(np.int32)
        cv2.fillPoly(picture, [pixels], (255.0,))
    return np.asarray(cv2.resize(picture, (SHAPE_SIDE, SHAPE_SIDE), interpolation=cv2.INTER_AREA), np.uint8)


_CIRCLE = np.arange(96) * (2 * np.pi / 96)


def _rounded(x: float, power: float, width: float = 1.0, height: float = 1.0) -> Float64Array:
    """A superellipse around ``(x, 0)``: power 2 is an ellipse, 20 nearly a rectangle."""
    cosine, sine = np.cos(_CIRCLE), np.sin(_CIRCLE)
    radius = (np.abs(cosine) ** power + np.abs(sine) ** power) ** (-1 / power)
    return np.stack([x + width * radius * cosine, height * radius * sine], axis=1)


def _blob(random: np.random.Generator) -> Float64Array:
    """A closed smooth line: a circle with a varying radius."""
    radius = np.ones(96)
    for wave in range(1, 6):
        radius += random.normal(0, 0.3 / wave) * np.cos(wave * _CIRCLE + random.uniform(0, 2 * np.pi))
    radius = radius.clip(0.25, None)
    points = np.stack([radius * np.cos(_CIRCLE), radius * np.sin(_CIRCLE)], axis=1)
    return np.asarray(points / np.abs(points).max())


def _hand(random: np.random.Generator) -> list[Float64Array]:
    """A palm, four fingers that point up, and a thumb."""
    palm = _rounded(0.0, 4.0, 0.5, 0.5) + np.array([0.0, 0.45])
    spread, bend = random.uniform(0.04, 0.16), random.uniform(-0.1, 0.1)
    fingers = [palm]
    for number, length in enumerate((0.75, 0.95, 1.0, 0.85)):
        angle = bend + spread * (number - 1.5)
        root = np.array([-0.37 + 0.25 * number, 0.1])
        fingers.append(_limb(root, angle, length * random.uniform(0.75, 0.95), 0.115))
    side = random.choice([-1.0, 1.0])
    fingers.append(_limb(np.array([side * 0.4, 0.55]), side * random.uniform(0.5, 0.9), 0.5, 0.13))
    return fingers


def _limb(root: Float64Array, angle: float, length: float, width: float) -> Float64Array:
    """A capsule that points up from a root, rotated to the right by an angle."""
    round_end = np.stack([width * np.cos(_CIRCLE), width * np.sin(_CIRCLE)], axis=1)
    round_end[:, 1] -= np.where(np.sin(_CIRCLE) < 0, length, 0)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.asarray(round_end @ np.array([[cosine, sine], [-sine, cosine]]) + root)


def _mask(peak: float) -> Float64Array:
    """A face mask: higher at the nose than at the cheeks by `peak`, round below."""
    x = np.linspace(-1, 1, 33)
    upper = -1 + peak * x**2
    lower = 1 - 0.9 * np.abs(x) ** 3
    return np.concatenate([np.stack([x, upper], axis=1), np.stack([x, lower], axis=1)[::-1]])


def _scarf(random: np.random.Generator) -> Float64Array:
    """Cloth with a wavy upper edge, down to the end of the square."""
    x = np.linspace(-1, 1, 33)
    wave = sum(random.uniform(0.03, 0.1) * np.sin(k * 2 * x + random.uniform(0, 2 * np.pi)) for k in range(1, 4))
    upper = np.stack([x, np.maximum(-0.8 + wave, -1)], axis=1)
    return np.concatenate([upper, [[1.0, 1.0], [-1.0, 1.0]]])


def _lenses(power: float) -> list[Float64Array]:
    """Two lenses and the bridge between them."""
    bridge = np.array([[-0.3, -0.45], [0.3, -0.45], [0.3, -0.15], [-0.3, -0.15]])
    return [_rounded(-0.53, power, 0.47), _rounded(0.53, power, 0.47), bridge]


@dataclass(frozen=True, slots=True)
class Occlusions:
    """At most one occlusion for each of N faces, where `shown`. Occluded landmarks keep their labels.

    `shape` ``(N,)`` are indices in the shape bank; `affines` ``(N, 2, 3)`` lead from pixel indices of the face to those
    of the shape's picture. `opacity` ``(N,)`` is 0 to 1, `color` ``(N, 3)`` grey levels, `texture` ``(N,)`` the share
    of another face's skin, 0 to 1: of the row `donor` in the cache, to whose crop `skin` ``(N, 2, 3)`` leads.
    """

    shown: BoolArray
    shape: Int64Array
    affines: Float64Array
    opacity: Float32Array
    color: Float32Array
    texture: Float32Array
    donor: Int64Array
    skin: Float64Array


class _Axes(NamedTuple):
    """Axes of N faces in their crops: the middle between the eyes, unit vectors to the right and down, extents."""

    eyes: Float64Array
    right: Float64Array
    down: Float64Array
    eye_distance: Float64Array
    width: Float64Array
    height: Float64Array


class _Material(NamedTuple):
    """Shapes of a layer, probability of skin, saturation, brightest grey level, least opacity."""

    shapes: Sequence[int]
    skin: float = 0.6
    vivid: float = 0.7
    brightest: float = 255.0
    thinnest: float = 0.7


Placed = tuple[BoolArray, Float64Array, Float64Array]
"""Which faces, centre ``(N, 2)``, and half axes as columns ``(N, 2, 2)``, in fractions of the crop."""


def draw_occlusions(
    fractions: Float32Array,
    eyes: tuple[int, int],
    rows: Int64Array,
    frames: FaceFrames,
    size: int,
    config: AugmentConfig,
    generator: np.random.Generator,
) -> tuple[Occlusions, ...]:
    """Draw three layers of occlusions; how many numbers are drawn depends on N alone, never on the strengths.

    `fractions` ``(N, P, 2)`` are landmarks as fractions of the crop of `size` pixels, `eyes` the scheme's two
    normalizing points, which lie at or in the eyes. Skin comes from these faces' `rows` ``(N,)`` in the cache.
    """
    axes = _axes(fractions.astype(np.float64), eyes)
    glass = _Material(GLASSES, skin=0.2, vivid=0.4, brightest=90.0, thinnest=0.4)
    placed = (
        (_placed_things(fractions, config, generator), _Material(THINGS)),
        (_placed_masks(axes, config, generator), _Material(MASKS, skin=0.3, vivid=0.4)),
        (_placed_glasses(axes, config, generator), glass),
    )
    return tuple(_occlusions(*place, material, rows, frames, size, generator) for place, material in placed)


def _placed_things(fractions: Float32Array, config: AugmentConfig, generator: np.random.Generator) -> Placed:
    """At a landmark or anywhere, up to two thirds of the crop large, with any rotation."""
    count, points = len(fractions), fractions.shape[1]
    shown = generator.random(count) < config.occlusion
    anywhere = generator.uniform(-0.05, 1.05, (count, 2))
    at_point = np.nan_to_num(fractions[np.arange(count), generator.integers(points, size=count)], nan=0.5)
    center = np.where(generator.random((count, 1)) < 0.5, anywhere, at_point)
    half = 0.06 + 0.26 * generator.random((count, 2)) ** 1.3
    angle = generator.uniform(0, 2 * np.pi, count)
    right = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    down = np.stack([-np.sin(angle), np.cos(angle)], axis=1)
    return shown, center, _half_axes(right, half[:, 0], down, half[:, 1])


def _placed_masks(axes: _Axes, config: AugmentConfig, generator: np.random.Generator) -> Placed:
    """From the nose to below the chin."""
    count = len(axes.eyes)
    shown = generator.random(count) < config.mask
    top = generator.uniform(0.2, 0.5, count) * axes.height
    bottom = generator.uniform(1.02, 1.25, count) * axes.height
    half_width = generator.uniform(0.5, 0.75, count) * axes.width
    center = axes.eyes + axes.down * ((top + bottom) / 2)[:, None]
    return shown, center, _half_axes(axes.right, half_width, axes.down, (bottom - top) / 2)


def _placed_glasses(axes: _Axes, config: AugmentConfig, generator: np.random.Generator) -> Placed:
    """Over both eyes."""
    count = len(axes.eyes)
    shown = generator.random(count) < config.glasses
    half_width = generator.uniform(0.6, 0.8, count) * axes.eye_distance
    half_height = generator.uniform(0.35, 0.55, count) * half_width
    center = axes.eyes + axes.down * (generator.uniform(-0.1, 0.3, count) * half_height)[:, None]
    return shown, center, _half_axes(axes.right, half_width, axes.down, half_height)


def _half_axes(
    right: Float64Array, half_width: Float64Array, down: Float64Array, half_height: Float64Array
) -> Float64Array:
    return np.stack([right * half_width[:, None], down * half_height[:, None]], axis=2)


def _axes(fractions: Float64Array, eyes: tuple[int, int]) -> _Axes:
    """Find the faces' axes; a profile, whose eyes nearly coincide, counts as upright."""
    fractions = np.nan_to_num(fractions, nan=0.5)
    first, second = fractions[:, eyes[0]], fractions[:, eyes[1]]
    across = second - first
    distance = np.linalg.norm(across, axis=1)
    right = np.where((distance > _SMALLEST_EYES)[:, None], across / np.maximum(distance, 1e-6)[:, None], (1.0, 0.0))
    down = np.stack([-right[:, 1], right[:, 0]], axis=1)
    middle = (first + second) / 2
    # Most of the face is below its eyes, also where it is upside down.
    below = ((fractions.mean(axis=1) - middle) * down).sum(axis=1)
    down *= np.where(below < 0, -1.0, 1.0)[:, None]
    local = fractions - middle[:, None]
    sideways = (local * right[:, None]).sum(axis=2)
    height = (local * down[:, None]).sum(axis=2).max(axis=1)
    # In a profile the face's middle is not between its eyes.
    shift = (sideways.max(axis=1) + sideways.min(axis=1)) / 2
    width = np.ptp(sideways, axis=1)
    return _Axes(middle + right * (shift / 2)[:, None], right, down, np.maximum(distance, 0.45 * width), width, height)


def _occlusions(
    shown: BoolArray,
    center: Float64Array,
    half: Float64Array,
    material: _Material,
    rows: Int64Array,
    frames: FaceFrames,
    size: int,
    generator: np.random.Generator,
) -> Occlusions:
    """Draw shape, colour and skin, and convert the place to an affine map."""
    count = len(shown)
    donor = generator.integers(count, size=count)
    kind = generator.random(count)
    texture = np.select([kind < material.skin * 2 / 3, kind < material.skin], [1.0, 0.5], 0.0)
    opacity = np.where(generator.random(count) < 0.8, 1.0, generator.uniform(material.thinnest, 1.0, count))
    gray, hue = (generator.uniform(0, material.brightest, (count, channels)) for channels in (1, 3))
    return Occlusions(
        shown=shown,
        shape=generator.choice(np.array(material.shapes), size=count),
        affines=_to_shape(center, half, size),
        opacity=opacity.astype(np.float32),
        color=(gray + material.vivid * (hue - gray)).astype(np.float32),
        texture=texture.astype(np.float32),
        donor=rows[donor],
        skin=_skin(frames, donor, size, generator),
    )


def _to_shape(center: Float64Array, half: Float64Array, size: int) -> Float64Array:
    """``(N, 2, 3)`` from the face's pixel indices to those of the shape's picture."""
    # Degenerate landmarks must not raise: the occlusion gets a tiny size.
    sound = np.abs(np.linalg.det(half)) > 1e-6
    half = np.where(sound[:, None, None], half, np.eye(2) * 0.01)
    linear = np.linalg.inv(half) * (_RIM * SHAPE_SIDE / 2)
    # Pixel centres lie at (i + 0.5) / size of the crop.
    origin = (linear @ (0.5 / size - center)[:, :, None])[:, :, 0] + (SHAPE_SIDE - 1) / 2
    return np.concatenate([linear / size, origin[:, :, None]], axis=2)


def _skin(frames: FaceFrames, donor: Int64Array, size: int, generator: np.random.Generator) -> Float64Array:
    """``(N, 2, 3)`` from the face's pixel indices to a part of the donor's crop, with any rotation."""
    count = len(donor)
    angle = generator.uniform(0, 2 * np.pi, count)
    side = np.sqrt(np.abs(np.linalg.det(frames.matrices[donor])))
    linear = (generator.uniform(0.4, 1.0, count) * side)[:, None, None] * np.stack(
        [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1
    ).reshape(count, 2, 2)
    center = frames.centers[donor] + generator.uniform(-0.2, 0.2, (count, 2)) * side[:, None]
    return FaceFrames(linear, center, np.zeros(count, np.bool_)).affines(size)
