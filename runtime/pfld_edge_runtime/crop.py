"""The face crop that training, calibration, evaluation and devices share, and the bilinear sampling behind it.

The crop follows the published PFLD evaluation: a square of ``int(max(w, h) * margin)`` pixels around the box's integer
centre, zero padding outside the photograph, bilinear resize. Sampling positions are those of ``cv2.resize`` with
``INTER_LINEAR`` (``(i + 0.5) * scale - 0.5``, edges repeated). No padded copy of the photograph is made.

The window of a face that lies or stands on its head is turned by the face's roll about its own centre, so that the crop
shows the face upright; a roll of 0 is the published crop, bit by bit.
"""

import threading
from dataclasses import dataclass
from functools import lru_cache
from math import floor, prod
from os import PathLike
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import BoolArray, Float32Array, Float64Array, Int64Array, Uint8Array
from pfld_edge_runtime.contract import Contract
from pfld_edge_runtime.errors import BoxError, ImageError

Number = TypeVar("Number", np.uint16, np.int64, np.float32)

# Beyond this a float64 no longer resolves single pixels well and int64 arithmetic on sizes could overflow.
LARGEST_COORDINATE = 1e9
_LARGEST_KEPT = 1 << 22  # bytes of scratch memory, enough for crops of 256 x 256; no detector's whole input
_WIDE = 5  # widths of the result in a window's, from which on fewer columns cost less than their gathering


@dataclass(frozen=True, slots=True, eq=False)
class CropWindows:
    """Where each face's square crop lies in the photograph.

    Attributes:
        corners: ``(N, 2)`` int64, x and y of the top left corner in photograph pixels, before the window is turned; may
            be negative.
        sizes: ``(N,)`` int64, the side in pixels, at least 1.
        rolls: ``(N,)`` float64 degrees by which the window is turned about its centre, positive clockwise in the
            photograph; None where no window is turned.
    """

    corners: Int64Array
    sizes: Int64Array
    rolls: Float64Array | None = None

    def to_image(self, fractions: Float32Array) -> Float32Array:
        """Map ``(N, P, 2)`` fractions of the crop to photograph pixels, float32."""
        scaled = fractions * self.sizes[:, None, None] + self.corners[:, None, :]
        if self.rolls is not None:
            scaled = turn_points(scaled, self._centers(), self.rolls)
        return scaled.astype(np.float32)

    def to_crop(self, landmarks: Float32Array) -> Float32Array:
        """Map ``(N, P, 2)`` photograph pixels to fractions of the crop, float32; the inverse of `to_image`."""
        points = landmarks if self.rolls is None else turn_points(landmarks, self._centers(), -self.rolls)
        fractions = (points - self.corners[:, None, :]) / self.sizes[:, None, None]
        return fractions.astype(np.float32)

    def sampling_matrix(self, index: int, size: int) -> Float64Array:
        """Give the ``(2, 3)`` map of `warp_affine` for one window: from the crop's pixels to the photograph's."""
        radians = 0.0 if self.rolls is None else float(np.deg2rad(self.rolls[index]))
        turn = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
        turn *= self.sizes[index] / size
        # Integers are centres of pixels, so the window's centre lies half a pixel to the left and above.
        return np.column_stack([turn, self._centers()[index] - 0.5 - turn.sum(axis=1) * (size - 1) / 2])

    def _centers(self) -> Float64Array:
        return self.corners + self.sizes[:, None] / 2


def check_boxes(boxes: object) -> Float64Array:
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
        raise ImageError(f"image must be a numpy array of shape (H, W, 3); found {_found(image)}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        mend = "divide 16 bits by 65535" if image.dtype.kind == "u" else "image.astype(np.uint8) if it holds 0..255"
        raise ImageError(f"image must be uint8 (0..255) or floating point (0..1); found dtype {image.dtype}: {mend}")
    plain = np.asarray(image)  # a matrix or masked array would index by rules of its own
    view = plain[:, :, None] if plain.ndim == 2 else plain
    if view.ndim != 3 or view.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"image must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); found {image.shape}: one photograph a "
            "call, colours last (image.transpose(1, 2, 0))"
        )
    if view.size == 0:
        raise ImageError(f"image is empty: shape {image.shape}")
    return view[:, :, :3] if view.shape[2] == 4 else view


def _found(image: object) -> str:
    """Say what was given in place of an array, and how to make one of it."""
    if image is None:
        return "None, which cv2.imread gives for a file that it can't read"
    if isinstance(image, str | bytes | PathLike):
        return f"{type(image).__name__}: read the file first, e.g. with cv2.imread"
    pillow = type(image).__module__.startswith("PIL.")
    mend = 'np.asarray(image.convert("RGB"))' if pillow else "np.asarray(image, np.uint8)"
    return f"{type(image).__name__}: pass {mend}"


def check_color(color: str) -> None:
    """Raise an `ImageError` for a channel order that is neither ``rgb`` nor ``bgr``."""
    if not isinstance(color, str) or color not in ("rgb", "bgr"):  # the boxes, say, which compare element by element
        found = repr(color) if isinstance(color, str) else type(color).__name__
        raise ImageError(f"color must be 'rgb' or 'bgr', not {found}")


def turn_points(points: NDArray[np.floating], centers: Float64Array, rolls: Float64Array) -> Float64Array:
    """Turn ``(N, P, 2)`` points about ``(N, 2)`` centres by ``(N,)`` degrees, positive clockwise in the photograph."""
    radians = np.deg2rad(rolls)
    cosine, sine = np.cos(radians)[:, None], np.sin(radians)[:, None]
    x, y = np.moveaxis(points - centers[:, None, :], -1, 0)
    turned: Float64Array = np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)
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
    corners, sizes = list[tuple[int, int]](), list[int]()
    # Plain floats: numpy takes longer to start than to compute.
    for x0, y0, x1, y1 in valid.tolist():
        side = max(int(max(x1 - x0, y1 - y0) * margin), 1)
        corners.append((floor(x0 + (x1 - x0) / 2) - side // 2, floor(y0 + (y1 - y0) / 2) - side // 2))
        sizes.append(side)
    places = np.array(corners, np.int64).reshape(-1, 2), np.array(sizes, np.int64)
    if roll is None:
        return CropWindows(*places)
    try:
        rolls = np.broadcast_to(np.asarray(roll, np.float64), len(valid))
    except (TypeError, ValueError) as error:
        raise BoxError(f"roll must be one number of degrees for each of the {len(valid)} boxes: {error}") from error
    if not np.isfinite(rolls).all():
        raise BoxError(f"roll must be finite degrees, found {rolls.tolist()}")
    return CropWindows(*places, rolls if rolls.any() else None)


def crop_faces(image: object, windows: CropWindows, size: int, *, swap_channels: bool = False) -> Uint8Array:
    """Crop and resize every window of a photograph to ``(N, size, size, 3)`` uint8.

    Grey photographs are repeated over the channels; `swap_channels` reverses their order. Within one grey level of
    ``cv2.copyMakeBorder`` + ``cv2.resize`` (``INTER_LINEAR``), which rounds its weights to 11 bits. An `ImageError`
    says that the image can't be used.
    """
    photo = check_image(image)
    backwards = photo.strides[2] < 0
    if backwards:
        # Undo `image[:, :, ::-1]` and renumber the channels to match: reading memory backwards is slow.
        photo = photo[:, :, ::-1]
    order = tuple(range(photo.shape[2]))[:: -1 if swap_channels != backwards else 1]
    if windows.rolls is not None:
        photo = np.ascontiguousarray(photo)  # once, not for every face
    crops = np.empty((len(windows.sizes), size, size, 3), np.uint8)
    for index, ((x, y), side) in enumerate(zip(windows.corners.tolist(), windows.sizes.tolist(), strict=True)):
        if windows.rolls is not None and windows.rolls[index]:
            crops[index] = warp_affine(photo, windows.sampling_matrix(index, size), size)[:, :, order]
        else:
            _resample(photo, (y, x), (side, side), crops[index], order)
    return crops


def contract_crops(
    image: object, boxes: object, contract: Contract, color: str = "rgb", roll: object = None
) -> tuple[CropWindows, Uint8Array]:
    """Crop boxed faces as a network's contract has it; arguments and errors are those of `FaceLandmarker`."""
    check_color(color)
    windows = crop_windows(boxes, contract.crop.margin, roll)
    return windows, crop_faces(image, windows, contract.input_size, swap_channels=color != contract.color_order)


def resize(photo: NDArray[np.generic], width: int, height: int) -> Uint8Array:
    """Resize a photograph ``(H, W, C)`` from `check_image` as ``cv2.resize`` does with ``INTER_LINEAR``.

    Gives ``(3, height, width)`` uint8, grey photographs repeated over the channels. Only the pixels needed are read. An
    `ImageError` says that a floating-point photograph is not in 0..1.
    """
    factor = photo.shape[1] // width
    if photo.dtype == np.uint8 and photo.shape[:2] == (height * factor, width * factor):
        planes = _shrunk(photo, factor)
    else:
        resized = np.empty((height, width, photo.shape[2]), np.uint8)
        _resample(photo, (0, 0), photo.shape[:2], resized, tuple(range(photo.shape[2])))
        planes = resized.transpose(2, 0, 1)
    return np.broadcast_to(planes, (3, height, width))


def _shrunk(photo: NDArray[np.generic], factor: int) -> Uint8Array:
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


def warp_affine(photo: NDArray[np.generic], matrix: Float64Array, size: int) -> Uint8Array:
    """Sample a photograph as ``cv2.warpAffine`` does with ``INTER_LINEAR | WARP_INVERSE_MAP`` and a black border.

    `matrix` is ``(2, 3)``, from ``(x, y, 1)`` in the ``(size, size, C)`` result to pixels of the ``(H, W, C)``
    photograph from `check_image`; an `ImageError` says that floating-point values are not in 0..1.
    """
    steps = np.arange(size)
    height, width, channels = photo.shape
    # Far outside, indices would overflow; one pixel outside is as black.
    x = (matrix[0, 0] * steps + matrix[0, 1] * steps[:, None] + matrix[0, 2]).clip(-2, width + 1)
    y = (matrix[1, 0] * steps + matrix[1, 1] * steps[:, None] + matrix[1, 2]).clip(-2, height + 1)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    columns, rows = _line_taps(left, x, width), _line_taps(top, y, height)
    samples, planes = np.ascontiguousarray(photo).reshape(-1), np.arange(channels)[:, None, None]
    # Planes of single values: numpy gathers them and weighs them faster than pixels.
    face = np.full((channels, size, size), 0.5, np.float32)
    places = _scratch_memory("gathered", face.shape, np.int64)
    for row, low in rows:
        for column, across in columns:
            np.add(row * (width * channels) + column * channels, planes, out=places)
            face += _grey_levels(samples.take(places)) * (low * across)
    pixels: Uint8Array = face.astype(np.uint8).transpose(1, 2, 0)
    return pixels


def _line_taps(first: Int64Array, at: Float64Array, length: int) -> list[tuple[Int64Array, Float32Array]]:
    """The two lines beside each place, by their numbers within a photograph, and their weights: 0 outside of it."""
    share = (at - first).astype(np.float32)
    taps = ((first, np.float32(1) - share), (first + 1, share))
    return [(line.clip(0, length - 1), weight * ((line >= 0) & (line < length))) for line, weight in taps]


def _taps(length: int, size: int, before: int, after: int) -> tuple[Int64Array, Float32Array, BoolArray]:
    """The two lines that each of `size` lines of a result mixes, ``(2, size)``, of a window of `length` lines.

    So many lines `before` and `after` lie outside the photograph; lines are counted from the first inside. Gives them,
    the share of the second of the two, ``(size,)``, and which lie inside: the others weigh nothing.
    """
    offsets = (np.arange(size) + 0.5) * (length / size) - 0.5
    first = np.floor(offsets)
    lines = np.stack([first, first + 1]).astype(np.int64).clip(0, length - 1) - before
    legal = lines.clip(0, length - before - after - 1)
    return legal, (offsets - first).astype(np.float32), legal == lines


@lru_cache(maxsize=32)
def _row_taps(length: int, size: int, before: int, after: int) -> tuple[Int64Array, NDArray[np.uint16]]:
    """Rows, ``(2, size)``, and their weights, ``(2, size, 1)`` whole 256ths: sums of bytes are exact in 16 bits."""
    lines, share, inside = _taps(length, size, before, after)
    low = (share * np.float32(256) + np.float32(0.5)).astype(np.uint16)
    return lines.ravel(), (np.stack([256 - low, low]) * inside)[:, :, None]


@lru_cache(maxsize=32)
def _column_taps(
    length: int, size: int, before: int, after: int, order: tuple[int, ...], channels: int
) -> tuple[Int64Array, Float32Array]:
    """The same of columns, for each channel of the result: places in a row of pixels, and weights over 256."""
    lines, share, inside = _taps(length, size, before, after)
    weights = np.stack([np.float32(1) - share, share]) / np.float32(256) * inside
    samples = lines[:, :, None] * channels + order
    return samples.ravel(), weights.repeat(len(order), axis=1)[:, None]


def _resample(
    photo: NDArray[np.generic],
    start: tuple[int, int],
    lengths: tuple[int, ...],
    result: Uint8Array,
    order: tuple[int, ...],
) -> None:
    """Resize the window of a photograph that begins at row and column `start` bilinearly into ``(H', W', C)`` bytes.

    Rows are mixed first, as 16-bit integers, which numpy's loops handle fastest. A window that is much wider than the
    result is cut down to the columns needed before that.
    """
    (y, x), (height, width) = start, lengths
    top, bottom = max(-y, 0), max(y + height - photo.shape[0], 0)
    left, right = max(-x, 0), max(x + width - photo.shape[1], 0)
    if top + bottom >= height or left + right >= width:
        result[:] = 0
        return
    lines, row_weights = _row_taps(height, result.shape[0], top, bottom)
    samples, column_weights = _column_taps(width, result.shape[1], left, right, order, photo.shape[2])
    part = photo[y + top : y + height - bottom, x + left : x + width - right]
    taps = _grey_levels(part[lines].reshape(2, len(result), -1))
    wide = width > _WIDE * result.shape[1]
    if wide:
        taps = taps.take(samples, axis=2)
    mixed = _scratch_memory("taps", taps.shape, np.uint16)
    np.multiply(taps, row_weights, out=mixed)
    rows = mixed[0]
    rows += mixed[1]
    if not wide:
        gathered = _scratch_memory("gathered", (len(rows), len(samples)), np.uint16)
        rows = rows.take(samples, axis=1, mode="clip", out=gathered)
    # One array for each side: numpy would copy halves of one row before it adds them. The memory is one that is read no
    # more, and so still in the processor's cache.
    weighed = _scratch_memory("gathered" if wide else "taps", (2, len(rows), len(samples) // 2), np.float32)
    np.multiply(rows.reshape(len(rows), 2, -1).transpose(1, 0, 2), column_weights, out=weighed)
    levels = weighed[0]
    levels += weighed[1]
    levels += np.float32(0.5)
    result[:] = levels.reshape(*result.shape[:2], -1)


def _grey_levels(pixels: NDArray[np.generic]) -> Uint8Array:
    """Bytes as they are; floating-point values, which must lie in 0..1, scaled to 0..255 and rounded."""
    if pixels.dtype == np.uint8:
        return pixels.view(np.uint8)
    low, high = float(pixels.min()), float(pixels.max())
    # Not `low < 0 or high > 1`: comparisons with NaN are false, and NaN must be refused too.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ImageError(
            f"a floating-point image is read as 0..1, found {low:g} to {high:g} in it: pass uint8, or divide by 255"
        )
    levels: Uint8Array = (np.clip(pixels, 0, 1).astype(np.float32) * 255 + np.float32(0.5)).astype(np.uint8)
    return levels


def _scratch_memory(name: str, shape: tuple[int, ...], dtype: type[Number]) -> NDArray[Number]:
    """An uninitialised array that lasts until the thread asks for that name again.

    A thread uses the memory again for its next face: fresh pages cost as much as the arithmetic.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    buffer: Uint8Array | None = getattr(_scratch, name, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.uint8)
        if size <= _LARGEST_KEPT:
            setattr(_scratch, name, buffer)
    return buffer[:size].view(dtype).reshape(shape)


_scratch = threading.local()
