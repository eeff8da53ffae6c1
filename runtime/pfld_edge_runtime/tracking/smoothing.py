"""Smoothing of landmarks: the One-Euro filter, and its use on a face's rigid motion and shape separately.

Casiez, Roussel, Vogel: "1 Euro Filter: A Simple Speed-based Low-pass Filter for Noisy Input in Interactive Systems",
CHI 2012, algorithm 1. Added to it: vectors whose components share one speed, and a dead band (see `OneEuro`).
"""

from dataclasses import dataclass, fields
from math import isfinite, pi, sqrt
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float64Array
from pfld_edge_runtime.errors import SmoothingError, is_number
from pfld_edge_runtime.geometry.landmarks import Shape

Cutoff = TypeVar("Cutoff", float, Float64Array)

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
            if not (is_number(value) and isfinite(value)) or value < 0 or (value == 0 and least == "above 0"):
                raise SmoothingError(f"OneEuro {item.name} is {value!r}; it must be finite and {least}")


def low_pass_gain(cutoff: Cutoff, interval: float) -> Cutoff:
    """The share of a new sample in a first-order low-pass filter (equation 5 of the paper): ``1 / (1 + tau / Te)``."""
    turn = cutoff * (2 * pi * interval)
    return turn / (1 + turn)


class SpeedGain:
    """The adaptive gain of the filter: the share of each innovation to add to the filtered value."""

    def __init__(self, *settings: OneEuro) -> None:
        """Take the settings of all samples, or those of each one: as many as there are rows."""
        rows = [(one.min_cutoff, one.beta, one.derivative_cutoff, one.dead_band, one.dead_band > 0) for one in settings]
        # Arrays only where rows differ: numbers are faster.
        self._settings = [
            each[0] if len(set(each)) == 1 else np.array(each)[:, None] for each in zip(*rows, strict=True)
        ]
        self._banded = any(one.dead_band for one in settings)
        self._speed: Float64Array | None = None
        self._noise = _Noise()
        self._seen = 1

    def __call__(self, innovation: Float64Array, interval: float) -> Float64Array:
        """Give the ``(..., 1)`` gains, 0..1, of the next samples ``(..., D)``, given less the last filtered values.

        The D components share one speed; `interval` is in seconds since the last sample, above 0.
        """
        min_cutoff, beta, derivative_cutoff, dead_band, starts = self._settings
        gain = low_pass_gain(derivative_cutoff, interval)
        # As algorithm 1 has it, speed is measured from the last *filtered* value: what lags behind counts as moving.
        # The first of these meets a low-pass filter that has seen the paper's initial dx = 0.
        slope = innovation * (gain / interval)
        if self._speed is not None:
            slope += self._speed * (1 - gain)
        self._speed = slope
        speed = np.sqrt(_power(slope))
        if self._banded:
            # White noise of deviation s has deviation s / interval * sqrt(gain / (2 - gain)) after that low pass.
            speed -= self._noise(innovation, interval) * (dead_band / interval * (gain / (2 - gain)) ** 0.5)
            np.maximum(speed, 0, out=speed)
        share: Float64Array = low_pass_gain(speed * beta + min_cutoff, interval)
        if self._banded:
            # Inside the band a low cutoff would keep the first sample's error for seconds: start as a plain mean.
            self._seen += 1
            np.maximum(share, starts / self._seen, out=share)
        return share


def _power(vectors: Float64Array) -> Float64Array:
    """The ``(..., 1)`` sums of the squares of ``(..., D)`` components."""
    power: Float64Array = (vectors * vectors).dot(np.ones((vectors.shape[-1], 1)))  # faster than np.einsum
    return power


class _Noise:
    """Standard deviation of a signal's noise, from second differences, which are zero for uniform motion."""

    def __init__(self) -> None:
        self._last: Float64Array | None = None
        self._step: Float64Array | None = None  # from the sample before to the last
        self._last_interval = 0.0
        self._variance: Float64Array | float = 0.0
        self._seen = 0

    def __call__(self, sample: Float64Array, interval: float) -> Float64Array:
        """Add a sample ``(..., D)``; give the deviation ``(..., 1)`` of all D components together, 0 at first."""
        step = None if self._last is None else sample - self._last
        if self._step is not None and step is not None:
            ratio = interval / self._last_interval
            power = _power(step - self._step * ratio)
            scale = 1 + (1 + ratio) ** 2 + ratio**2  # the power of white noise of variance 1
            if self._seen > 2:
                np.minimum(power, self._variance * (_LARGEST_ERROR**2 * scale), out=power)
            self._seen += 1
            share = max(1 / self._seen, interval / (interval + _NOISE_TIME))
            power *= share / scale
            power += self._variance * (1 - share)
            self._variance = power
        self._last, self._step, self._last_interval = sample, step, interval
        deviation: Float64Array = np.sqrt(self._variance)
        return deviation


class OneEuroFilter:
    """Filters one vector signal, or many side by side.

    Example:
        >>> smooth = OneEuroFilter(OneEuro(min_cutoff=1.0, beta=0.1))
        >>> smooth(point, 1 / 30)  # (2,) or (N, 2): x and y share one speed
    """

    def __init__(self, settings: OneEuro) -> None:
        self._gain = SpeedGain(settings)
        self._value: Float64Array | None = None

    def __call__(self, sample: NDArray[np.floating], interval: float) -> Float64Array:
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

    def __post_init__(self) -> None:
        for name, settings in (("motion", self.motion), ("shape", self.shape)):
            if not isinstance(settings, OneEuro):
                raise SmoothingError(f"Smoothing {name} is {settings!r}; it must be a OneEuro")


class FaceSmoother:
    """The state of the two filters for one face.

    Attributes:
        last: The last smoothed landmarks; None before the first.
    """

    def __init__(self, settings: Smoothing) -> None:
        self._settings = settings
        self._gains: SpeedGain | None = None
        self.last: Shape | None = None

    def __call__(self, landmarks: NDArray[np.floating], interval: float) -> Float64Array:
        """Smooth the next frame's landmarks, ``(P, 2)`` pixels; the first come back as they are.

        `interval` is in seconds since the last frame, above 0.
        """
        return self.smooth(Shape(landmarks), interval).landmarks

    def smooth(self, found: Shape, interval: float) -> Shape:
        """The same of a `Shape`."""
        self.last = found if self.last is None else self._step(found, self.last, interval)
        return self.last

    def _step(self, found: Shape, last: Shape, interval: float) -> Shape:
        size = last.size
        if size == 0:
            return found
        # `fit_similarity` of the last landmarks to these, in place: a tracker calls this for each face and frame.
        shift = found.center - last.center
        around = last.points - last.center
        power = float(np.vdot(around, around).real)
        factor = complex(np.vdot(around, found.points)) / power
        if abs(factor) < _COLLAPSED:
            return found
        residual = found.points - around * factor
        residual -= found.center
        # One row for each landmark, and the last for the motion in pixels: the translation, and how far rotation and
        # scale move a typical point.
        innovation = np.zeros((len(residual) + 1, 2), np.complex128)
        innovation[:-1, 0] = residual
        innovation[-1] = shift, (factor - 1) * sqrt(power / len(residual))
        innovation /= size
        if self._gains is None:
            self._gains = SpeedGain(*[self._settings.shape] * len(residual), self._settings.motion)
        gains = self._gains(innovation.view(np.float64), interval)[:, 0]
        moved = float(gains[-1])
        # Bent in the frame before, then moved.
        turn = factor**moved
        residual *= gains[:-1]
        residual *= turn / factor
        around *= turn
        around += residual
        around += last.center + moved * shift
        return Shape(around[:, None].view(np.float64))
