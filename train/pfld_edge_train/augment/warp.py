"""Carries out affine maps: with OpenCV, one picture at a time, or with torch, all at once on any device.

On a CPU OpenCV's warp of bytes takes a fifth of `grid_sample`'s time; a GPU wants one call a batch. Both sample
bilinearly, and what lies outside the picture is black, as the runtime's crop does it.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["shrink_factors", "warp_picture", "warp_pictures"]

_MOST_SAMPLES = 4
"""Samples a side of a result's pixel at most, where a picture is smoothed before it is shrunk."""
_HARDLY = 1.2
"""Shrinking by less than this needs no smoothing: bilinear sampling reads every pixel."""


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
