"""The one crop: training, calibration, evaluation and devices all cut faces with this function.

The protocol is the published PFLD evaluation's: a square of ``int(max(w, h) * margin)`` pixels around the box's
integer centre, zero padding outside the photograph, bilinear resize with OpenCV's sampling positions
(``(i + 0.5) * scale - 0.5``, edges repeated). Numpy alone; no padded copy of the photograph is ever made.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.errors import BoxError, ImageError
from pfld_edge_runtime.grey_levels import grey_levels
from pfld_edge_runtime.resample import bilinear_taps, resample

__all__ = ["CropWindows", "check_boxes", "check_image", "crop_faces", "crop_windows"]

# Beyond this a float64 no longer resolves single pixels well and int64 arithmetic on sizes could overflow.
_LARGEST_COORDINATE = 1e9


@dataclass(frozen=True, slots=True)
class CropWindows:
    """Where each face's square crop lies in the photograph.

    Attributes:
        corners: ``(N, 2)`` int64, x and y of the top left corner in photograph pixels; may be negative.
        sizes: ``(N,)`` int64, the side in pixels, at least 1.
    """

    corners: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def to_image(self, fractions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map ``(N, P, 2)`` fractions of the crop to photograph pixels, float32."""
        scaled = fractions * self.sizes[:, None, None] + self.corners[:, None, :]
        return scaled.astype(np.float32)

    def to_crop(self, landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map ``(N, P, 2)`` photograph pixels to fractions of the crop, float32; the inverse of `to_image`."""
        fractions = (landmarks - self.corners[:, None, :]) / self.sizes[:, None, None]
        return fractions.astype(np.float32)


def check_boxes(boxes: object) -> NDArray[np.float64]:
    """Validate face boxes.

    Args:
        boxes: ``(N, 4)`` or one ``(4,)`` box: x0, y0, x1, y1 in pixels, right and bottom edges exclusive. Columns
            after the fourth (a detector's score) are ignored.

    Returns:
        ``(N, 4)`` float64; N may be 0.

    Raises:
        BoxError: Wrong shape or type, NaN or infinite, or no area.
    """
    if isinstance(boxes, np.ndarray) and boxes.dtype.kind in "cmMV":
        raise BoxError(f"boxes must be numbers of shape (N, 4), x0 y0 x1 y1 in pixels; found dtype {boxes.dtype}")
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise BoxError(f"boxes must be numbers of shape (N, 4), x0 y0 x1 y1 in pixels: {error}") from error
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[1] < 4:
        raise BoxError(f"boxes must have shape (N, 4), x0 y0 x1 y1 in pixels; found {array.shape}")
    array = array[:, :4]
    limit = _LARGEST_COORDINATE
    for index, (x0, y0, x1, y1) in enumerate(array.tolist()):
        # One comparison that NaN fails too; plain floats, since numpy takes longer to start than to compare.
        if not (-limit <= x0 < x1 <= limit and -limit <= y0 < y1 <= limit):
            raise BoxError(_box_fault(array[index], index))
    return array


def _box_fault(box: NDArray[np.float64], index: int) -> str:
    """Say what is wrong with a box that can't be used."""
    name = f"box {index} is {box.tolist()}"
    if np.isfinite(box).all() and np.abs(box).max() <= _LARGEST_COORDINATE:
        return f"{name}: x1 must exceed x0 and y1 exceed y0 (not x, y, width, height)"
    return f"{name}: coordinates must be finite and below 1e9 pixels"


def check_image(image: object) -> NDArray[np.generic]:
    """Validate a photograph and give it three axes, without copying it.

    Args:
        image: ``(H, W, 3)``, ``(H, W, 4)`` (alpha is ignored), ``(H, W, 1)`` or ``(H, W)``; uint8, or floating point in
            0..1. Any strides.

    Returns:
        ``(H, W, C)`` view with C of 1 or 3.

    Raises:
        ImageError: Not an array, wrong shape or dtype, or empty.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(f"image must be a numpy array of shape (H, W, 3); found {type(image).__name__}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise ImageError(f"image must be uint8 (0..255) or floating point (0..1); found dtype {image.dtype}")
    plain = np.asarray(image)  # a matrix or masked array would index by rules of its own
    view = plain[:, :, None] if plain.ndim == 2 else plain
    if view.ndim != 3 or view.shape[2] not in (1, 3, 4):
        raise ImageError(f"image must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); found {image.shape}")
    if view.size == 0:
        raise ImageError(f"image is empty: shape {image.shape}")
    return view[:, :, :3] if view.shape[2] == 4 else view


def crop_windows(boxes: object, margin: float) -> CropWindows:
    """Find the square that each box is cut by.

    Args:
        boxes: As for `check_boxes`. The published protocol's integer tight box of landmarks is
            ``floor(min)``, ``floor(max) + 1``.
        margin: Side of the square as a multiple of the box's longer side.

    Returns:
        N windows.

    Raises:
        BoxError: A box can't be used.
    """
    valid = check_boxes(boxes)
    extent = valid[:, 2:] - valid[:, :2]
    sizes = np.maximum((extent.max(axis=1, initial=0) * margin).astype(np.int64), 1)
    centers = np.floor(valid[:, :2] + extent / 2).astype(np.int64)
    return CropWindows(centers - sizes[:, None] // 2, sizes)


def crop_faces(image: object, windows: CropWindows, size: int, *, swap_channels: bool = False) -> NDArray[np.uint8]:
    """Cut and resize every window.

    Args:
        image: As for `check_image`.
        windows: N windows of that photograph.
        size: Side of the result in pixels.
        swap_channels: Reverse the channel order (RGB to BGR or back).

    Returns:
        ``(N, size, size, 3)`` uint8, grey photographs repeated over the channels. Within one grey level of
        ``cv2.copyMakeBorder`` + ``cv2.resize`` (``INTER_LINEAR``), which rounds its weights to 11 bits.

    Raises:
        ImageError: The image can't be used.
    """
    photo = check_image(image)
    channels = np.arange(photo.shape[2])[:: -1 if swap_channels else 1]
    photo, channels = _memory_order(photo, channels)
    taps = bilinear_taps(windows.corners, windows.sizes, size, photo.shape[0], photo.shape[1])
    crops = np.empty((len(windows.sizes), size, size, 3), np.uint8)
    for index, crop in enumerate(crops):
        if photo.dtype == np.uint8:
            face = resample(photo, taps, index, channels)
        else:
            # What overflows or isn't a number is refused by `grey_levels` with a sentence; no warning besides.
            with np.errstate(over="ignore", invalid="ignore"):
                face = grey_levels(resample(photo, taps, index, channels))
        face += np.float32(0.5)
        crop[:] = face.astype(np.uint8).reshape(size, -1, size).transpose(2, 0, 1)
    return crops


def _memory_order(
    photo: NDArray[np.generic], channels: NDArray[np.int64]
) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Undo ``image[:, :, ::-1]``, and renumber the channels to match: reading memory backwards is slow."""
    if photo.strides[2] >= 0:
        return photo, channels
    return photo[:, :, ::-1], photo.shape[2] - 1 - channels
