"""Bilinear resampling of square windows: OpenCV's sampling positions, zero outside the photograph, no padded copy."""

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Taps", "bilinear_taps", "resample"]

Levels = NDArray[np.float32]

_BOTH_TAPS = np.array([[0], [1]])


@dataclass(frozen=True, slots=True)
class Taps:
    """Which lines of the photograph each line of the result mixes, for N windows; axis 1 is y, x, axis 2 the two taps.

    Attributes:
        lines: ``(N, 2, 2, S)`` int64 indices into the photograph, rising along S.
        weights: ``(N, 2, 2, S)`` float32 in 0..1; zero for a line outside the photograph.
    """

    lines: NDArray[np.int64]
    weights: Levels


def bilinear_taps(corners: NDArray[np.int64], sides: NDArray[np.int64], size: int, height: int, width: int) -> Taps:
    """Find the taps of N square windows: positions ``(i + 0.5) * side / size - 0.5``, the window's edges repeated.

    Zero padding needs no padded copy: a line outside the photograph keeps a legal index and gets weight zero.

    Args:
        corners: ``(N, 2)`` x and y of the top left corners in the photograph; may lie outside.
        sides: ``(N,)`` lines in each window.
        size: Lines in the result.
        height: Lines in the photograph.
        width: Columns in the photograph.
    """
    position = (np.arange(size) + 0.5) * (sides / size)[:, None] - 0.5
    first = np.floor(position)
    weights = np.empty((len(sides), 1, 2, size), np.float32)
    weights[:, 0, 1] = position - first
    np.subtract(np.float32(1), weights[:, 0, 1], out=weights[:, 0, 0])
    inside = first.astype(np.int64)[:, None] + _BOTH_TAPS
    inside = np.minimum(np.maximum(inside, 0), (sides - 1)[:, None, None])
    lines = inside[:, None] + corners[:, ::-1, None, None]
    legal = np.minimum(np.maximum(lines, 0), np.array([[[height - 1]], [[width - 1]]]))
    return Taps(legal, weights * (lines == legal))


def resample(photo: NDArray[np.generic], taps: Taps, index: int, channels: NDArray[np.int64]) -> Levels:
    """Resize one window.

    The bytes of the four taps are gathered before any arithmetic, so a face of any size costs the arithmetic of the
    result's size. Columns and channels are one axis: numpy's loops are then long, and reordering channels is free. The
    result is transposed because numpy gathers ``array[:, indices]`` fastest into that order.

    Args:
        photo: ``(H, W, D)``, any strides.
        taps: From `bilinear_taps` for this photograph.
        index: Which of the windows.
        channels: ``(C,)`` the photograph's channels in the result's order, each below D.

    Returns:
        ``(S * C, S)`` float32, columns and channels by rows, in the photograph's own unit.
    """
    (upper, lower), columns = taps.lines[index]
    row_weights, column_weights = taps.weights[index]
    left, right = int(columns[0, 0]), int(columns[1, -1]) + 1
    strip = photo[:, left:right]
    samples = ((columns - left)[:, :, None] * photo.shape[2] + channels).ravel()
    face, below = _scratch.arrays(len(samples), len(upper))
    face[:] = strip[upper].reshape(len(upper), -1)[:, samples].T
    face *= row_weights[0]
    below[:] = strip[lower].reshape(len(lower), -1)[:, samples].T
    below *= row_weights[1]
    face += below
    face *= np.repeat(column_weights, len(channels), axis=1).reshape(-1, 1)
    half = len(face) // 2
    mixed: Levels = np.add(face[:half], face[half:], out=face[:half])
    return mixed


class _Scratch(threading.local):
    """Memory that a thread uses again for its next face: fresh pages cost as much as the arithmetic."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.float32)

    def arrays(self, samples: int, lines: int) -> tuple[Levels, Levels]:
        """Give two ``(samples, lines)`` arrays of whatever was there; they last until the thread's next call."""
        needed = 2 * samples * lines
        if self._buffer.size < needed:
            self._buffer = np.empty(needed, np.float32)
        first, second = self._buffer[:needed].reshape(2, samples, lines)
        return first, second


_scratch = _Scratch()
