"""Arrays of landmarks: validation, the tight box, and the similarity transform between two shapes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float64Array
from pfld_edge_runtime.errors import LandmarkError


def check_landmarks(landmarks: object, points: int | None = 98) -> Float64Array:
    """Validate landmarks ``(N, P, 2)``, or ``(P, 2)`` for one face, and give them as ``(N, P, 2)`` float64.

    Raises:
        LandmarkError: Wrong shape or type, not as many `points` as the caller needs (None: any), NaN or infinite.
    """
    wanted = "P" if points is None else points
    try:
        array = np.asarray(landmarks, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LandmarkError(
            f"landmarks must be numbers of shape (N, {wanted}, 2), x and y in pixels: {error}"
        ) from error
    if array.size == 0 and points is not None:
        return np.zeros((0, points, 2))
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[2] != 2 or points not in (None, array.shape[1]):
        raise LandmarkError(f"landmarks must have shape (N, {wanted}, 2), x and y in pixels; found {array.shape}")
    if not np.isfinite(array).all():
        broken = int(np.flatnonzero(~np.isfinite(array).all(axis=(1, 2)))[0])
        raise LandmarkError(f"the landmarks of face {broken} hold NaN or infinity: leave that face out")
    return array


def tight_box(landmarks: object) -> Float64Array:
    """Find the boxes that landmark networks are trained on: the integer tight box of the published PFLD evaluation.

    Of ``(N, P, 2)`` landmarks of any scheme in photograph pixels, or ``(P, 2)`` for one face: ``(N, 4)`` or ``(4,)``
    float64 x0, y0, x1, y1, ``trunc`` of the least and ``trunc + 1`` of the greatest coordinates; right and bottom edges
    exclusive. Coordinates are truncated toward zero, as that protocol's conversion to integers does, so a box may cut
    off the fraction of a pixel by which landmarks lie left of or above the photograph's first pixel. It may leave the
    photograph. A `LandmarkError` says that the landmarks can't be used.
    """
    points = check_landmarks(landmarks, points=None)
    boxes: Float64Array = np.concatenate([np.trunc(points.min(axis=1)), np.trunc(points.max(axis=1)) + 1], axis=1)
    return boxes[0] if np.asarray(landmarks).ndim == 2 else boxes


class Shape:
    """The landmarks of one face, with what the tracker asks of them more than once in each frame.

    Attributes:
        landmarks: ``(P, 2)`` float64.
        points: The same memory as ``(P,)`` complex numbers x + iy.
        center: Their mean.
        extent: The least x and y and the greatest x and y; NaN where a coordinate is NaN.
        size: The longer side of that box: the tracker's unit of distance.
    """

    __slots__ = ("center", "extent", "landmarks", "points", "size")

    def __init__(self, landmarks: NDArray[np.floating]) -> None:
        self.landmarks = np.ascontiguousarray(landmarks, np.float64)
        self.points: NDArray[np.complex128] = self.landmarks.view(np.complex128)[:, 0]
        self.center = complex(np.add.reduce(self.points)) / len(self.points)
        # Along the rows of a copy, and without the array's own `min` and `max`: three times as fast.
        coordinates = self.landmarks.T.copy()
        left, top = np.minimum.reduce(coordinates, 1).tolist()
        right, bottom = np.maximum.reduce(coordinates, 1).tolist()
        self.extent: tuple[float, float, float, float] = left, top, right, bottom
        self.size: float = max(right - left, bottom - top)


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """Similarity transforms of the plane, without reflection; points are complex numbers x + iy.

    `shift` leads from the source's `center` to the target's; `factor`, rotation and scale, multiplies the source's
    offsets from its centre. All are of shape ``(...)``.
    """

    center: NDArray[np.complex128]
    shift: NDArray[np.complex128]
    factor: NDArray[np.complex128]

    @property
    def matrix(self) -> Float64Array:
        """The transforms as ``(..., 2, 3)``: ``target ~ source @ M[:, :2].T + M[:, 2]``."""
        turn = np.array([[self.factor.real, -self.factor.imag], [self.factor.imag, self.factor.real]])
        shift = self.center + self.shift - self.factor * self.center
        return np.moveaxis(np.concatenate([turn, np.array([[shift.real], [shift.imag]])], axis=1), (0, 1), (-2, -1))

    @property
    def inverse(self) -> "Similarity":
        """The transforms from target to source."""
        with np.errstate(invalid="ignore"):  # NaN stays NaN
            return Similarity(self.center + self.shift, -self.shift, 1 / self.factor)

    def apply(self, points: Float64Array, fraction: float = 1.0) -> Float64Array:
        """Move ``(..., P, 2)`` points a fraction (0..1) of the way, with rotation and scale in proportion."""
        around = as_complex(points) - self.center[..., None]
        around *= self.factor[..., None] ** fraction
        around += (self.center + fraction * self.shift)[..., None]
        return around[..., None].view(np.float64)


def fit_similarity(source: Float64Array, target: Float64Array) -> Similarity:
    """Find the similarity transforms that bring points ``(..., P, 2)`` nearest to others, in least squares.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991, eq. 40 to
    42, without reflection: in the plane a quotient of sums of complex numbers, without a singular value decomposition.
    A factor is NaN where all points of the source coincide.
    """
    points, goals = as_complex(source), as_complex(target)
    center, end = points.sum(axis=-1) / points.shape[-1], goals.sum(axis=-1) / goals.shape[-1]
    around = points - center[..., None]
    opposite = around.conj()
    power = (opposite * around).real.sum(axis=-1)
    product = (opposite * goals).sum(axis=-1)  # the offsets from a centre add up to nothing
    with np.errstate(invalid="ignore"):
        factor = product / np.where(power > 0, power, np.nan)
    return Similarity(center, end - center, factor)


def as_complex(points: NDArray[np.floating]) -> NDArray[np.complex128]:
    """``(..., P, 2)`` points as ``(..., P)`` complex numbers, of the same memory where that can be."""
    return np.ascontiguousarray(points, np.float64).view(np.complex128)[..., 0]
