"""Makes few calibration faces look like many."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["vary_crops"]

Crop = NDArray[np.uint8]


def vary_crops(crops: Crop, seed: int = 0) -> Crop:
    """Mirror, turn by up to 45 degrees and scale by up to a fifth, black outside.

    For calibration on a handful of portraits, whose ranges are too narrow for other faces. With the two bundled
    portraits the mean landmark deviation from fp32 to INT8, on 292 unlabelled WFLW faces, falls from 0.0185 to 0.0090
    of the eye distance for the published GhostOne, and from 0.0030 to 0.0027 for pfld-edge-s. Light, contrast and
    occlusion are left alone on purpose: extremes that no face has widen the ranges until nothing is resolved (0.0105
    and 0.0325). Many real faces are better left as they are.

    Args:
        crops: ``(N, S, S, 3)`` uint8.
        seed: Of all choices.

    Returns:
        Crops of the same shape.
    """
    random = np.random.default_rng(seed)
    varied = np.empty_like(crops)
    for target, crop in zip(varied, crops, strict=True):
        target[:] = _turned(crop[:, ::-1] if random.random() < 0.5 else crop, random)
    return varied


def _turned(crop: Crop, random: np.random.Generator) -> Crop:
    size = crop.shape[0]
    center = ((size - 1) / 2, (size - 1) / 2)
    matrix = cv2.getRotationMatrix2D(center, random.uniform(-45, 45), random.uniform(0.8, 1.2))
    return np.asarray(cv2.warpAffine(np.ascontiguousarray(crop), matrix, (size, size)), np.uint8)
