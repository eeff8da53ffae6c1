"""The face crop that training, calibration, evaluation and devices share, and the bilinear sampling behind it.

The crop follows the published PFLD evaluation: a square of ``int(max(w, h) * margin)`` pixels around the box's integer
centre, zero padding outside the photograph, bilinear resize. Sampling positions are those of ``cv2.resize`` with
``INTER_LINEAR`` (``(i + 0.5) * scale - 0.5``, edges repeated). No padded copy of the photograph is made.

The window of a face that lies or stands on its head is turned by the face's roll about its own centre, so that the crop
shows the face upright; a roll of 0 is the published crop, bit by bit.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.errors import BoxError, ImageError

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

# Beyond this a float64 no longer resolves single pixels well and int64 arithmetic on sizes could overflow.
LARGEST_COORDINATE = 1e9
_LARGEST_KEPT = 1 << 20  # float32 values of scratch memory, enough for crops of 256 x 256; no detector's whole input
_BOTH_TAPS = np.array([[0], [1]])


@dataclass(frozen=True, slots=True)
class CropWindows:
    """Where each face's square crop lies in the photograph.

    Attributes:
        corners: ``(N, 2)`` int64, x and y of the top left corner in photograph pixels, before the window is turned; may
            be negative.
        sizes: ``(N,)`` int64, the side in pixels, at least 1.
        rolls: ``(N,)`` float64 degrees by which the window is turned about its centre, positive clockwise in the
            photograph; None where no window is turned.
    """

    corners: Int64
    sizes: Int64
    rolls: NDArray[np.float64] | None = None

    def to_image(self, fractions: Float32) -> Float32:
        """Map ``(N, P, 2)`` fractions of the crop to photograph pixels, float32."""
        scaled = fractions * self.sizes[:, None, None] + self.corners[:, None, :]
        if self.rolls is not None:
            scaled = turn_points(scaled, self._centers(), self.rolls)
        return scaled.astype(np.float32)

    def to_crop(self, landmarks: Float32) -> Float32:
        """Map ``(N, P, 2)`` photograph pixels to fractions of the crop, float32; the inverse of `to_image`."""
        points = landmarks if self.rolls is None else turn_points(landmarks, self._centers(), -self.rolls)
        fractions = (points - self.corners[:, None, :]) / self.sizes[:, None, None]
        return fractions.astype(np.float32)

    def sampling_matrix(self, index: int, size: int) -> NDArray[np.float64]:
        """Give the ``(2, 3)`` map of `warp_affine` for one window: from the crop's pixels to the photograph's."""
        radians = 0.0 if self.rolls is None else float(np.deg2rad(self.rolls[index]))
        turn = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
        turn *= self.sizes[index] / size
        # Integers are centres of pixels, so the window's centre lies half a pixel to the left and above.
        return np.column_stack([turn, self._centers()[index] - 0.5 - turn.sum(axis=1) * (size - 1) / 2])

    def _centers(self) -> NDArray[np.float64]:
        return self.corners + self.sizes[:, None] / 2

    def sampling_positions(self, size: int) -> NDArray[np.float64]:
        """Give the photograph coordinates that `crop_faces` samples for windows that are not turned.

        ``(N, 2, size)`` float64: x of every column and y of every row of the crop, never beyond the centres of the
        window's outermost pixels. Integers are centres of pixels, as in OpenCV.
        """
        inside = _offsets(self.sizes, size).clip(0, (self.sizes - 1)[:, None])
        positions: NDArray[np.float64] = self.corners[:, :, None] + inside[:, None]
        return positions


def check_boxes(boxes: object) -> NDArray[np.float64]:
    """Validate face boxes, ``(N, 4)`` or one ``(4,)``: x0, y0, x1, y1 in pixels, right and bottom edges exclusive.

    Columns after the fourth (a detector's score) are ignored. Gives ``(N, 4)`` float64; N may be 0.

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
    limit = LARGEST_COORDINATE
    for index, (x0, y0, x1, y1) in enumerate(array.tolist()):
        # One comparison that NaN fails too; plain floats, since numpy takes longer to start than to compare.
        if -limit <= x0 < x1 <= limit and -limit <= y0 < y1 <= limit:
            continue
        name = f"box {index} is {[x0, y0, x1, y1]}"
        if np.isfinite(array[index]).all() and np.abs(array[index]).max() <= limit:
            raise BoxError(f"{name}: x1 must exceed x0 and y1 exceed y0 (not x, y, width, height)")
        raise BoxError(f"{name}: coordinates must be finite and below 1e9 pixels")
    return array


def check_image(image: object) -> NDArray[np.generic]:
    """Validate a photograph, as `FaceLandmarker` takes it, and give its ``(H, W, C)`` view with C of 1 or 3.

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


def check_color(color: str) -> None:
    """Raise an `ImageError` for a channel order that is neither ``rgb`` nor ``bgr``."""
    if color not in ("rgb", "bgr"):
        raise ImageError(f"color must be 'rgb' or 'bgr', not {color!r}")


def turn_points(
    points: NDArray[np.floating], centers: NDArray[np.float64], rolls: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Turn ``(N, P, 2)`` points about ``(N, 2)`` centres by ``(N,)`` degrees, positive clockwise in the photograph."""
    radians = np.deg2rad(rolls)
    cosine, sine = np.cos(radians)[:, None], np.sin(radians)[:, None]
    x, y = np.moveaxis(points - centers[:, None, :], -1, 0)
    turned: NDArray[np.float64] = np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)
    return turned + centers[:, None, :]


def crop_windows(boxes: object, margin: float, roll: object = None) -> CropWindows:
    """Find the square crop window of each box, in the published protocol that of `tight_box`.

    Args:
        boxes: As for `FaceLandmarker`.
        margin: Side of the square as a multiple of the box's longer side.
        roll: Degrees by which each face leans, ``(N,)`` or one number for all, positive clockwise in the photograph, as
            `HeadPose.roll`. The window is turned by it about its centre; the box is that of the face before it is
            turned, see `turned_box`. None for upright faces.

    Raises:
        BoxError: A box or a roll can't be used.
    """
    valid = check_boxes(boxes)
    extent = valid[:, 2:] - valid[:, :2]
    sizes = np.maximum((extent.max(axis=1, initial=0) * margin).astype(np.int64), 1)
    centers = np.floor(valid[:, :2] + extent / 2).astype(np.int64)
    return CropWindows(centers - sizes[:, None] // 2, sizes, _check_rolls(roll, len(valid)))


def _check_rolls(roll: object, count: int) -> NDArray[np.float64] | None:
    """``(count,)`` finite degrees; None where all are 0."""
    if roll is None:
        return None
    try:
        rolls = np.broadcast_to(np.asarray(roll, np.float64), (count,))
    except (TypeError, ValueError) as error:
        raise BoxError(f"roll must be one number of degrees for each of the {count} boxes: {error}") from error
    if not np.isfinite(rolls).all():
        raise BoxError(f"roll must be finite degrees, found {rolls.tolist()}")
    return rolls if rolls.any() else None


def crop_faces(image: object, windows: CropWindows, size: int, *, swap_channels: bool = False) -> NDArray[np.uint8]:
    """Crop and resize every window of a photograph to ``(N, size, size, 3)`` uint8.

    Grey photographs are repeated over the channels; `swap_channels` reverses their order. Within one grey level of
    ``cv2.copyMakeBorder`` + ``cv2.resize`` (``INTER_LINEAR``), which rounds its weights to 11 bits. An `ImageError`
    says that the image can't be used.
    """
    photo = check_image(image)
    channels = np.arange(photo.shape[2])[:: -1 if swap_channels else 1]
    if photo.strides[2] < 0:
        # Undo `image[:, :, ::-1]` and renumber the channels to match: reading memory backwards is slow.
        photo, channels = photo[:, :, ::-1], photo.shape[2] - 1 - channels
    offsets = _offsets(windows.sizes, size)[:, None]
    starts, limits = windows.corners[:, ::-1], np.array(photo.shape[:2])
    lines, weights = _taps(offsets, windows.sizes[:, None], starts, limits)
    crops = np.empty((len(windows.sizes), size, size, 3), np.uint8)
    for index, crop in enumerate(crops):
        if windows.rolls is not None and windows.rolls[index]:
            crop[:] = warp_affine(photo, windows.sampling_matrix(index, size), size)[:, :, channels]
            continue
        face = _resample(photo, lines[index], weights[index], channels)
        face += np.float32(0.5)
        crop[:] = face.astype(np.uint8).reshape(size, -1, size).transpose(2, 0, 1)
    return crops


def resize(photo: NDArray[np.generic], width: int, height: int) -> NDArray[np.uint8]:
    """Resize a photograph ``(H, W, C)`` from `check_image` as ``cv2.resize`` does with ``INTER_LINEAR``.

    Gives ``(3, height, width)`` uint8, grey photographs repeated over the channels. Only the pixels needed are read. An
    `ImageError` says that a floating-point photograph is not in 0..1.
    """
    factor = photo.shape[1] // width
    if photo.dtype == np.uint8 and photo.shape[:2] == (height * factor, width * factor):
        planes = _shrunk(photo, factor)
    else:
        axes = [
            _taps(_offsets(np.array(length), size), np.array(length), np.array(0), np.array(length))
            for length, size in zip(photo.shape, (height, width), strict=False)
        ]
        lines, weights = zip(*axes, strict=True)
        levels = _resample(photo, lines, weights, np.arange(photo.shape[2]))
        levels += np.float32(0.5)
        planes = levels.astype(np.uint8).reshape(width, -1, height).transpose(1, 2, 0)
    return np.broadcast_to(planes, (3, height, width))


def _shrunk(photo: NDArray[np.generic], factor: int) -> NDArray[np.uint8]:
    """`resize` by a whole factor: the middle pixel of each block of an odd one, the mean of the middle four of another.

    The strided copies are planar and of bytes, whose loops numpy runs fastest.
    """
    starts = [(factor - 1) // 2] if factor % 2 else [factor // 2 - 1, factor // 2]
    taps = (photo[y::factor, x::factor].transpose(2, 0, 1) for y in starts for x in starts)
    if len(starts) == 1:
        return np.ascontiguousarray(next(taps), np.uint8)
    tap = np.empty((photo.shape[2], photo.shape[0] // factor, photo.shape[1] // factor), np.uint8)
    total = np.full(tap.shape, 2, np.uint16)
    for pixels in taps:
        tap[:] = pixels
        total += tap
    total >>= 2
    return total.astype(np.uint8)


def warp_affine(photo: NDArray[np.generic], matrix: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Sample a photograph as ``cv2.warpAffine`` does with ``INTER_LINEAR | WARP_INVERSE_MAP`` and a black border.

    `matrix` is ``(2, 3)``, from ``(x, y, 1)`` in the ``(size, size, C)`` result to pixels of the ``(H, W, C)``
    photograph from `check_image`; an `ImageError` says that floating-point values are not in 0..1.
    """
    steps = np.arange(size)
    x = matrix[0, 0] * steps + matrix[0, 1] * steps[:, None] + matrix[0, 2]
    y = matrix[1, 0] * steps + matrix[1, 1] * steps[:, None] + matrix[1, 2]
    height, width = photo.shape[:2]
    # Far outside, indices would overflow; one pixel outside is as black.
    x, y = x.clip(-2, width + 1), y.clip(-2, height + 1)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right_share, low_share = (x - left).astype(np.float32), (y - top).astype(np.float32)
    face = np.zeros((size, size, photo.shape[2]), np.float32)
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        rows, columns = top + down, left + across
        weights = (low_share if down else 1 - low_share) * (right_share if across else 1 - right_share)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        taps = photo[rows.clip(0, height - 1), columns.clip(0, width - 1)]
        face += taps.astype(np.float32, copy=False) * (weights * inside)[:, :, None]
    levels: NDArray[np.uint8] = (_grey_levels(face, photo.dtype) + np.float32(0.5)).astype(np.uint8)
    return levels


def _offsets(lengths: Int64, size: int) -> NDArray[np.float64]:
    """Sampling positions ``(..., size)`` along axes of ``(...)`` lines, from the centre of their first line."""
    scale: NDArray[np.float64] = lengths / size
    positions: NDArray[np.float64] = (np.arange(size) + 0.5) * scale[..., None] - 0.5
    return positions


def _taps(offsets: NDArray[np.float64], lengths: Int64, starts: Int64, limits: Int64) -> tuple[Int64, Float32]:
    """Indices of the two photograph lines that each line of a result mixes, and their weights, both ``(..., 2, S)``.

    Zero padding needs no padded copy: a line outside the photograph keeps a legal index and gets weight zero.
    """
    first = np.floor(offsets)
    fraction = (offsets - first).astype(np.float32)
    weights = np.stack([np.float32(1) - fraction, fraction], axis=-2)
    inside = first.astype(np.int64)[..., None, :] + _BOTH_TAPS
    lines = np.minimum(np.maximum(inside, 0), (lengths - 1)[..., None, None]) + starts[..., None, None]
    legal = np.minimum(np.maximum(lines, 0), (limits - 1)[..., None, None])
    return legal, weights * (lines == legal)


def _resample(
    photo: NDArray[np.generic], lines: Sequence[Int64], weights: Sequence[Float32], channels: NDArray[np.int64]
) -> Float32:
    """Resize one window bilinearly.

    The bytes of the four taps are gathered before any arithmetic, so a face of any size costs the arithmetic of the
    result's size. Columns and channels are one axis: numpy's loops are then long, and reordering channels is free. The
    result, ``(W' * C, H')`` grey levels 0..255 in the thread's scratch memory, is transposed because numpy gathers
    ``array[:, indices]`` fastest into that order.
    """
    ((upper, lower), columns), (row_weights, column_weights) = lines, weights
    left, right = int(columns[0, 0]), int(columns[1, -1]) + 1
    strip = photo[:, left:right]
    samples = ((columns - left)[:, :, None] * photo.shape[2] + channels).ravel()
    face, below = _scratch_arrays(len(samples), len(upper))
    # Overflow and NaN raise an ImageError in `_grey_levels`; numpy needn't warn besides.
    with np.errstate(over="ignore", invalid="ignore"):
        face[:] = strip[upper].reshape(len(upper), -1)[:, samples].T
        face *= row_weights[0]
        below[:] = strip[lower].reshape(len(lower), -1)[:, samples].T
        below *= row_weights[1]
        face += below
        face *= np.repeat(column_weights, len(channels), axis=1).reshape(-1, 1)
        half = len(face) // 2
        return _grey_levels(np.add(face[:half], face[half:], out=face[:half]), photo.dtype)


def _grey_levels(sampled: Float32, dtype: np.dtype[np.generic]) -> Float32:
    """Scale what was sampled of a photograph to 0..255; of a floating-point one it must lie in 0..1."""
    if dtype == np.uint8:
        return sampled
    low, high = float(sampled.min()), float(sampled.max())
    # Not `low < 0 or high > 1`: comparisons with NaN are false, and NaN must be refused too.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ImageError(
            f"a floating-point image is read as 0..1, found {low:g} to {high:g} in it: pass uint8, or divide by 255"
        )
    levels: Float32 = np.clip(sampled, 0, 1) * np.float32(255)
    return levels


def _scratch_arrays(samples: int, lines: int) -> tuple[Float32, Float32]:
    """Two uninitialised ``(samples, lines)`` arrays that last until the thread's next call.

    A thread uses the memory again for its next face: fresh pages cost as much as the arithmetic.
    """
    needed = 2 * samples * lines
    buffer: Float32 = getattr(_scratch, "buffer", np.empty(0, np.float32))
    if needed > buffer.size:
        buffer = np.empty(needed, np.float32)
        if needed <= _LARGEST_KEPT:
            _scratch.buffer = buffer
    first, second = buffer[:needed].reshape(2, samples, lines)
    return first, second


_scratch = threading.local()
