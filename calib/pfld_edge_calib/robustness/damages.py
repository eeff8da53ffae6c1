"""What can be wrong with a photograph of a face, or with the box around it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib.robustness.patch import FACE_SIDE, FacePatch, turned

__all__ = ["DAMAGES", "Damage"]

Apply = Callable[[FacePatch, float, np.random.Generator], FacePatch]


@dataclass(frozen=True, slots=True)
class Damage:
    """One kind of damage.

    Attributes:
        name: One word or two.
        unit: What its strengths are.
        strengths: From mild to strong.
        apply: Makes a damaged copy. What chance decides (a direction, a place) doesn't depend on the strength.
    """

    name: str
    unit: str
    strengths: tuple[float, ...]
    apply: Apply


def _pixels(change: Callable[[NDArray[np.uint8], float, np.random.Generator], NDArray[np.generic]]) -> Apply:
    def apply(patch: FacePatch, strength: float, rng: np.random.Generator) -> FacePatch:
        return replace(patch, image=np.asarray(change(patch.image, strength, rng), np.uint8))

    return apply


def _blur(image: NDArray[np.uint8], strength: float, _rng: np.random.Generator) -> NDArray[np.generic]:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), strength * FACE_SIDE))


def _noise(image: NDArray[np.uint8], strength: float, rng: np.random.Generator) -> NDArray[np.generic]:
    noisy = image + strength * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(noisy), 0, 255)


def _jpeg(image: NDArray[np.uint8], strength: float, _rng: np.random.Generator) -> NDArray[np.generic]:
    packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(strength)])[1]
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))


def _dark(image: NDArray[np.uint8], strength: float, _rng: np.random.Generator) -> NDArray[np.generic]:
    return np.asarray(np.rint(image * np.float32(strength)))


def _small(image: NDArray[np.uint8], strength: float, _rng: np.random.Generator) -> NDArray[np.generic]:
    side = max(1, round(image.shape[0] * strength / FACE_SIDE))
    few = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(few, image.shape[1::-1], interpolation=cv2.INTER_LINEAR))


def _covered(patch: FacePatch, strength: float, rng: np.random.Generator) -> FacePatch:
    """A grey rectangle, as wide to its height as chance has it, somewhere in the landmarks' box."""
    low, high = patch.landmarks.min(axis=0), patch.landmarks.max(axis=0)
    stretch, shade = float(rng.uniform(0.6, 1.6)), int(rng.integers(20, 236))
    place = rng.uniform(0, 1, 2)
    size = np.minimum(np.sqrt(strength * (high - low).prod() * np.array([stretch, 1 / stretch])), high - low)
    corner = np.rint(low + place * (high - low - size)).astype(int)
    end = np.rint(corner + size).astype(int)
    image = patch.image.copy()
    image[max(0, corner[1]) : end[1], max(0, corner[0]) : end[0]] = shade
    return replace(patch, image=image)


def _rotated(patch: FacePatch, strength: float, rng: np.random.Generator) -> FacePatch:
    return turned(patch, strength if rng.integers(2) else -strength)


def _box_shifted(patch: FacePatch, strength: float, rng: np.random.Generator) -> FacePatch:
    angle = rng.uniform(0, 2 * np.pi)
    side = float((patch.box[2:] - patch.box[:2]).max())
    shift = strength * side * np.array([np.cos(angle), np.sin(angle)])
    return replace(patch, box=patch.box + np.tile(shift, 2))


def _box_scaled(patch: FacePatch, strength: float, _rng: np.random.Generator) -> FacePatch:
    center, half = (patch.box[:2] + patch.box[2:]) / 2, (patch.box[2:] - patch.box[:2]) / 2
    return replace(patch, box=np.concatenate([center - half * strength, center + half * strength]))


DAMAGES: tuple[Damage, ...] = (
    Damage("blur", "standard deviation, share of the face", (0.01, 0.02, 0.035, 0.05), _pixels(_blur)),
    Damage("noise", "standard deviation, grey levels", (10, 20, 40, 60), _pixels(_noise)),
    Damage("JPEG", "quality", (40, 20, 10, 5), _pixels(_jpeg)),
    Damage("darkness", "light that is left", (0.5, 0.25, 0.1, 0.05), _pixels(_dark)),
    Damage("occlusion", "covered share of the box", (0.05, 0.1, 0.2, 0.35), _covered),
    Damage("rotation", "degrees", (10, 20, 30, 45), _rotated),
    Damage("low resolution", "pixels of the face", (60, 40, 28, 18), _pixels(_small)),
    Damage("box shift", "share of the box", (0.03, 0.06, 0.1, 0.15), _box_shifted),
    Damage("box size", "factor", (0.8, 0.9, 1.1, 1.25), _box_scaled),
)
"""What `measure_robustness` does; a face being the longer side of its landmarks' box."""
