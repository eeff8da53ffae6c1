"""Smooths the landmarks of one face: where the face is, and what shape it has, each at its own pace."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.tracking.one_euro import OneEuro, SpeedGain
from pfld_edge_runtime.tracking.similarity import Similarity, face_size, fit_similarity

__all__ = ["FaceSmoother", "Smoothing"]

Array = NDArray[np.float64]

_MOTION = OneEuro(min_cutoff=0.05, beta=120.0, derivative_cutoff=3.0, dead_band=3.0)
_SHAPE = OneEuro(min_cutoff=0.05, beta=80.0, derivative_cutoff=3.0, dead_band=3.0)

_COLLAPSED = 0.05
"""A face that shrank to less than this share in one frame is not the same signal any more."""


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How landmarks are smoothed; speeds are in faces a second, a face being the longer side of its landmarks' box.

    A head moves all points together, an eyelid moves eight. Filtering the two apart lets the head follow at once while
    the shape, where most of the visible jitter is, stays calm. The same `OneEuro` twice is the filter of the paper over
    all landmarks.

    Attributes:
        motion: For shift, turn and size of the whole face.
        shape: For what each landmark does besides.
    """

    motion: OneEuro = _MOTION
    shape: OneEuro = _SHAPE


class FaceSmoother:
    """The state of the two filters for one face."""

    def __init__(self, settings: Smoothing) -> None:
        self._settings = settings
        self._landmarks: Array | None = None
        self._motion = SpeedGain(settings.motion)
        self._shape = SpeedGain(settings.shape)

    def __call__(self, landmarks: NDArray[np.floating], interval: float) -> Array:
        """Smooth the next frame's landmarks.

        Args:
            landmarks: ``(P, 2)`` pixels.
            interval: Seconds since the last frame, above 0; unused for the first, which comes back as it is.

        Returns:
            ``(P, 2)`` float64 pixels.
        """
        found = np.asarray(landmarks, np.float64)
        last, self._landmarks = self._landmarks, found
        if last is None or (size := face_size(last)) == 0:
            return found
        step = fit_similarity(last, found)
        if abs(step.factor) < _COLLAPSED:
            return found
        moved = float(self._motion(_rigid(step, last) / size, interval)[0, 0])
        residual = found - step.partly(1.0, last)
        bent = last + self._shape(residual / size, interval) * _turned_back(residual, step)
        self._landmarks = step.partly(moved, bent)
        return self._landmarks


def _rigid(step: Similarity, points: Array) -> Array:
    """A similarity as ``(1, 4)`` pixels: the shift, and how far turn and size move a typical point."""
    reach = float(np.sqrt(np.var(points, axis=0).sum()))
    swing = (step.factor - 1) * reach
    return np.array([[step.shift.real, step.shift.imag, swing.real, swing.imag]])


def _turned_back(residual: Array, step: Similarity) -> Array:
    """Where a residual after the step would have been before it."""
    before = (residual[:, 0] + 1j * residual[:, 1]) / step.factor
    return np.stack([before.real, before.imag], axis=1)
