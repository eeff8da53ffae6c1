"""What can stand before a face, as small pictures of opacity: drawn once, laid over faces by affine maps."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["GLASSES", "MASKS", "SHAPE_SIDE", "THINGS", "shape_bank"]

Points = NDArray[np.float64]

SHAPE_SIDE = 64
"""Side of a shape's picture in pixels. Its unit square, -1 to 1 along each axis, leaves a rim of one pixel free."""
_FINE = 8
"""Drawn so much larger and shrunk: soft edges."""

_BLOBS, _HANDS = 6, 5
THINGS = range(2 + _BLOBS + _HANDS)
"""Shapes for any place: rectangle, ellipse, blobs, hands."""
MASKS = range(THINGS.stop, THINGS.stop + 3)
"""Shapes for the lower face: two masks, a scarf."""
GLASSES = range(MASKS.stop, MASKS.stop + 3)
"""Shapes for the eyes: a bar, two dark lenses, angular ones."""


@lru_cache(maxsize=1)
def shape_bank() -> NDArray[np.uint8]:
    """All shapes, ``(K, SHAPE_SIDE, SHAPE_SIDE)``: 255 hides, 0 shows; the same in every process."""
    random = np.random.default_rng(2019)
    outlines = [[_rounded(0.0, 20.0)], [_rounded(0.0, 2.0)]]
    outlines += [[_blob(random)] for _ in range(_BLOBS)]
    outlines += [_hand(random) for _ in range(_HANDS)]
    outlines += [[_mask(0.55)], [_mask(0.25)], [_scarf(random)]]
    outlines += [[_rounded(0.0, 20.0)], _lenses(2.5), _lenses(6.0)]
    bank = np.stack([_drawn(outline) for outline in outlines])
    bank.setflags(write=False)
    return bank


def _drawn(outlines: list[Points]) -> NDArray[np.uint8]:
    """Fill outlines of the unit square."""
    side = SHAPE_SIDE * _FINE
    picture = np.zeros((side, side), np.uint8)
    for outline in outlines:
        pixels = (outline * (side / 2 - _FINE) + side / 2).round().astype(np.int32)
        cv2.fillPoly(picture, [pixels], (255.0,))
    return np.asarray(cv2.resize(picture, (SHAPE_SIDE, SHAPE_SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def _turns(count: int = 96) -> Points:
    return np.arange(count, dtype=np.float64) * (2 * np.pi / count)


def _rounded(x: float, power: float, width: float = 1.0, height: float = 1.0) -> Points:
    """A superellipse around ``(x, 0)``: power 2 is an ellipse, 20 nearly a rectangle."""
    cosine, sine = np.cos(_turns()), np.sin(_turns())
    radius = (np.abs(cosine) ** power + np.abs(sine) ** power) ** (-1 / power)
    return np.stack([x + width * radius * cosine, height * radius * sine], axis=1)


def _blob(random: np.random.Generator) -> Points:
    """A closed smooth line: a circle whose radius waves."""
    radius = np.ones(96)
    for wave in range(1, 6):
        radius += random.normal(0, 0.3 / wave) * np.cos(wave * _turns() + random.uniform(0, 2 * np.pi))
    radius = radius.clip(0.25, None)
    points = np.stack([radius * np.cos(_turns()), radius * np.sin(_turns())], axis=1)
    return np.asarray(points / np.abs(points).max())


def _hand(random: np.random.Generator) -> list[Points]:
    """A palm that comes in from below, four fingers and a thumb."""
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


def _limb(root: Points, angle: float, length: float, width: float) -> Points:
    """A capsule that grows upwards from a root, turned to the right by an angle."""
    turns = _turns(48)
    round_end = np.stack([width * np.cos(turns), width * np.sin(turns)], axis=1)
    round_end[:, 1] -= np.where(np.sin(turns) < 0, length, 0)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.asarray(round_end @ np.array([[cosine, sine], [-sine, cosine]]) + root)


def _mask(peak: float) -> Points:
    """A face mask: high at the nose by `peak`, lower at the cheeks, round below."""
    x = np.linspace(-1, 1, 33)
    upper = -1 + peak * x**2
    lower = 1 - 0.9 * np.abs(x) ** 3
    return np.concatenate([np.stack([x, upper], axis=1), np.stack([x, lower], axis=1)[::-1]])


def _scarf(random: np.random.Generator) -> Points:
    """Cloth with a waving upper edge, down to the end of the square."""
    x = np.linspace(-1, 1, 33)
    wave = sum(random.uniform(0.03, 0.1) * np.sin(k * 2 * x + random.uniform(0, 2 * np.pi)) for k in range(1, 4))
    upper = np.stack([x, np.maximum(-0.8 + wave, -1)], axis=1)
    return np.concatenate([upper, [[1.0, 1.0], [-1.0, 1.0]]])


def _lenses(power: float) -> list[Points]:
    """Two lenses and the bridge between them."""
    bridge = np.array([[-0.3, -0.45], [0.3, -0.45], [0.3, -0.15], [-0.3, -0.15]])
    return [_rounded(-0.53, power, 0.47), _rounded(0.53, power, 0.47), bridge]
