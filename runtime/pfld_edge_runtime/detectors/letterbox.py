"""How a whole photograph is laid into a detector's input: bilinear, top left, black beside and below.

Sampling positions are OpenCV's (``(i + 0.5) * scale - 0.5``, edges repeated), without smoothing before: the public
detectors were trained and measured with ``cv2.resize``'s ``INTER_LINEAR``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.crop import check_image
from pfld_edge_runtime.grey_levels import grey_levels

__all__ = ["Letterbox", "sample_letterbox"]


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where a photograph lies in a detector's input. Sizes are width, height in pixels.

    Attributes:
        photo: Size of the photograph.
        inner: Size at which the photograph lies in the top left corner.
        canvas: Size of the input.
    """

    photo: tuple[int, int]
    inner: tuple[int, int]
    canvas: tuple[int, int]

    @classmethod
    def inside(cls, photo: tuple[int, int], canvas: tuple[int, int], *, enlarge: bool) -> "Letterbox":
        """Fit a photograph into an input of fixed size, aspect kept.

        Args:
            photo: Size of the photograph.
            canvas: Size of the input.
            enlarge: Small photographs are enlarged too, not only large ones shrunk.
        """
        scale = min(canvas[0] / photo[0], canvas[1] / photo[1])
        return cls(photo, _scaled(photo, scale if enlarge else min(scale, 1.0)), canvas)

    @classmethod
    def within(cls, photo: tuple[int, int], largest_side: int, multiple: int, *, enlarge: bool) -> "Letterbox":
        """Choose an input for a photograph, its sides multiples of what the network needs.

        Args:
            photo: Size of the photograph.
            largest_side: The longer side's length after shrinking.
            multiple: Of what the input's sides must be multiples.
            enlarge: Small photographs are enlarged too, not only large ones shrunk.
        """
        scale = largest_side / max(photo)
        inner = _scaled(photo, scale if enlarge else min(scale, 1.0))
        width, height = (-(-side // multiple) * multiple for side in inner)
        return cls(photo, inner, (width, height))

    def to_image(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map ``(N, 4)`` boxes from pixels of the input to pixels of the photograph."""
        scale = np.array(self.photo, np.float64) / self.inner
        placed: NDArray[np.float64] = boxes.astype(np.float64) * np.tile(scale, 2)
        return placed


def sample_letterbox(image: object, letterbox: Letterbox, *, swap_channels: bool) -> NDArray[np.uint8]:
    """Sample what the network sees; of a larger photograph only the lines that are needed are ever read.

    Args:
        image: As for `FaceLandmarker`, of the letterbox's size.
        letterbox: Where the photograph goes.
        swap_channels: Reverse the channel order (RGB to BGR or back).

    Returns:
        ``(height, width, 3)`` uint8 of the canvas; grey photographs are repeated over the channels.

    Raises:
        ImageError: The image can't be used.
    """
    photo = check_image(image)
    width, height = letterbox.inner
    # Values beyond 0..1 are refused below with a sentence; no warning besides.
    with np.errstate(over="ignore", invalid="ignore"):
        levels = _resized(photo, width, height)
    if photo.dtype != np.uint8:
        levels = grey_levels(levels)
    canvas = np.zeros((letterbox.canvas[1], letterbox.canvas[0], 3), np.uint8)
    canvas[:height, :width] = (levels + np.float32(0.5))[:, :, :: -1 if swap_channels else 1]
    return canvas


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resized(photo: NDArray[np.generic], width: int, height: int) -> NDArray[np.float32]:
    """Resize bilinearly, columns first; ``(height, width, C)`` float32 in the photograph's own unit."""
    if photo.shape[:2] == (height, width):
        return photo.astype(np.float32)
    lines, line_weights = _taps(photo.shape[0], height)
    columns, column_weights = _taps(photo.shape[1], width)
    result = np.zeros((height, width, photo.shape[2]), np.float32)
    for line, line_weight in zip(lines, line_weights, strict=True):
        strip = photo[line]
        for column, column_weight in zip(columns, column_weights, strict=True):
            taken = strip.take(column, axis=1).astype(np.float32, copy=False)
            result += taken * (line_weight[:, None] * column_weight)[:, :, None]
    return result


def _taps(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the two source lines that each output line mixes, and their weights; both ``(2, size)``."""
    position = (np.arange(size) + 0.5) * (length / size) - 0.5
    first = np.floor(position).astype(np.int64)
    fraction = (position - first).astype(np.float32)
    return np.stack([first, first + 1]).clip(0, length - 1), np.stack([np.float32(1) - fraction, fraction])
