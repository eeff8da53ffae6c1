"""Smoothing of landmarks: the One-Euro filter, and its use on a face's rigid motion and shape separately.

Casiez, Roussel, Vogel: "1 Euro Filter: A Simple Speed-based Low-pass Filter for Noisy Input in Interactive Systems",
CHI 2012, algorithm 1. Added to it: vectors whose components share one speed, and a dead band (see `OneEuro`).
"""

from dataclasses import dataclass, fields
from math import isfinite, pi, sqrt
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.errors import SmoothingError
from pfld_edge_runtime.geometry.landmarks import face_size, fit_similarity

Array = NDArray[np.float64]
Cutoff = TypeVar("Cutoff", float, NDArray[np.float64])

_NOISE_TIME = 1.0
"""Seconds over which the noise is averaged."""

_LARGEST_ERROR = 3.0
"""A sample counts at most this many times the noise estimated so far, so that a blink is not taken for noise."""

_COLLAPSED = 0.05
"""Least scale of the face from one frame to the next; below it the filters start again."""


@dataclass(frozen=True, slots=True)
class OneEuro:
    """Settings of a One-Euro filter.

    Attributes:
        min_cutoff: Hz, above 0: the cutoff at rest. Lower jitters less.
        beta: Hz per unit of speed, 0 or more: how fast the cutoff rises with speed. Higher lags less.
        derivative_cutoff: Hz, above 0: the cutoff of the speed itself. Higher reacts earlier, and to noise.
        dead_band: Speeds up to this multiple of what noise alone makes of the speed leave the cutoff at rest; 0 is the
            filter of the paper. The noise is estimated from the signal, so one setting serves dim and bright light.
            With a dead band the filter also starts as the mean of its samples, until its own gain is the larger.
    """

    min_cutoff: float = 1.0
    beta: float = 0.0
    derivative_cutoff: float = 1.0
    dead_band: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            least = "above 0" if item.name.endswith("cutoff") else "0 or more"
            if not isfinite(value) or value < 0 or (value == 0 and least == "above 0"):
                raise SmoothingError(f"OneEuro {item.name} is {value!r}; it must be finite and {least}")


def low_pass_gain(cutoff: Cutoff, interval: float) -> Cutoff:
    """The share of a new sample in a first-order low-pass filter (equation 5 of the paper): ``1 / (1 + tau / Te)``."""
    turn = 2 * pi * cutoff * interval
    return turn / (1 + turn)


class SpeedGain:
    """The adaptive gain of the filter: the share of each innovation to add to the filtered value."""

    def __init__(self, settings: OneEuro) -> None:
        self._settings = settings
        self._speed: Array | None = None
        self._noise = _Noise()
        self._seen = 1

    def __call__(self, innovation: Array, interval: float) -> Array:
        """Give the ``(..., 1)`` gains, 0..1, of the next samples ``(..., D)``, given less the last filtered values.

        The D components share one speed; `interval` is in seconds since the last sample, above 0.
        """
        settings = self._settings
        gain = low_pass_gain(settings.derivative_cutoff, interval)
        # As algorithm 1 has it, speed is measured from the last *filtered* value: what lags behind counts as moving.
        # The first of these meets a low-pass filter that has seen the paper's initial dx = 0.
        slope = innovation / interval
        self._speed = gain * slope if self._speed is None else self._speed + gain * (slope - self._speed)
        speed: Array = np.sqrt(np.einsum("...i,...i->...", self._speed, self._speed))[..., None]
        if settings.dead_band:
            # White noise of deviation s has deviation s / interval * sqrt(gain / (2 - gain)) after that low pass.
            made_by_noise = self._noise(innovation, interval) / interval * sqrt(gain / (2 - gain))
            speed = np.maximum(speed - settings.dead_band * made_by_noise, 0)
        share: Array = low_pass_gain(settings.min_cutoff + settings.beta * speed, interval)
        if settings.dead_band:
            # Inside the band a low cutoff would keep the first sample's error for seconds: start as a plain mean.
            self._seen += 1
            share = np.maximum(share, 1 / self._seen)
        return share


class _Noise:
    """Standard deviation of a signal's noise, from second differences, which are zero for uniform motion."""

    def __init__(self) -> None:
        self._past: list[Array] = []
        self._last_interval = 0.0
        self._variance: Array | None = None
        self._seen = 0

    def __call__(self, sample: Array, interval: float) -> Array:
        """Add a sample ``(..., D)``; give the deviation ``(..., 1)`` of all D components together, 0 at first."""
        variance = np.zeros((*sample.shape[:-1], 1)) if self._variance is None else self._variance
        if len(self._past) == 2:
            ratio = interval / self._last_interval
            older, old = self._past
            error = sample - old - (old - older) * ratio
            power = np.einsum("...i,...i->...", error, error)[..., None] / (1 + (1 + ratio) ** 2 + ratio**2)
            if self._seen > 2:
                power = np.minimum(power, _LARGEST_ERROR**2 * variance)
            self._seen += 1
            variance = variance + max(1 / self._seen, interval / (interval + _NOISE_TIME)) * (power - variance)
            self._variance = variance
        self._past = [*self._past, sample][-2:]
        self._last_interval = interval
        return np.sqrt(variance)


class OneEuroFilter:
    """Filters one vector signal, or many side by side.

    Example:
        >>> smooth = OneEuroFilter(OneEuro(min_cutoff=1.0, beta=0.1))
        >>> smooth(point, 1 / 30)  # (2,) or (N, 2): x and y share one speed
    """

    def __init__(self, settings: OneEuro) -> None:
        self._gain = SpeedGain(settings)
        self._value: Array | None = None

    def __call__(self, sample: NDArray[np.floating], interval: float) -> Array:
        """Filter the next sample ``(..., D)``, the first of which comes back as it is.

        `interval` is in seconds since the last sample, above 0.
        """
        value = np.asarray(sample, np.float64)
        if self._value is not None:
            innovation = value - self._value
            value = self._value + self._gain(innovation, interval) * innovation
        self._value = value
        return value


_MOTION = OneEuro(min_cutoff=0.05, beta=120.0, derivative_cutoff=3.0, dead_band=3.0)
_SHAPE = OneEuro(min_cutoff=0.05, beta=80.0, derivative_cutoff=3.0, dead_band=3.0)


@dataclass(frozen=True, slots=True)
class Smoothing:
    """Settings of the two filters; speeds are in faces a second, a face being the longer side of its landmarks' box.

    A head moves all points together, an eyelid moves eight. With separate filters the head is followed without lag
    while the shape, where most of the visible jitter is, is smoothed strongly. The same `OneEuro` twice is the filter
    of the paper over all landmarks. `motion` filters translation, rotation and scale of the whole face, `shape` each
    landmark's movement relative to that.
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
        """Smooth the next frame's landmarks, ``(P, 2)`` pixels; the first come back as they are.

        `interval` is in seconds since the last frame, above 0.
        """
        found = np.asarray(landmarks, np.float64)
        last, self._landmarks = self._landmarks, found
        if last is None or (size := face_size(last)) == 0:
            return found
        step = fit_similarity(last, found)
        if abs(step.factor) < _COLLAPSED:
            return found
        # The motion in pixels: the translation, and how far rotation and scale move a typical point.
        around = last - last.sum(axis=0) / len(last)
        spread = (step.factor - 1) * sqrt((around**2).sum() / len(last))
        motion = np.array([[step.shift.real, step.shift.imag, spread.real, spread.imag]])
        moved = float(self._motion(motion / size, interval)[0, 0])
        residual = found - step.apply(last)
        # Rotated and scaled back to the frame before.
        before = (residual.view(np.complex128) / step.factor).view(np.float64)
        bent = last + self._shape(residual / size, interval) * before
        self._landmarks = step.apply(bent, moved)
        return self._landmarks
