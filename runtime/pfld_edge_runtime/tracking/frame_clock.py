"""When frames were taken."""

from math import isfinite

from pfld_edge_runtime.errors import TimestampError, TrackerError

__all__ = ["FrameClock"]


class FrameClock:
    """Gives every frame a time, and holds the times in order."""

    def __init__(self, fps: float) -> None:
        if not (isfinite(fps) and fps > 0):
            raise TrackerError(f"fps is {fps!r}; it must be finite and above 0")
        self._interval = 1 / fps
        self._now: float | None = None

    def __call__(self, timestamp: float | None) -> float:
        """Take the next frame's timestamp in seconds; None is one frame interval after the last.

        Raises:
            TimestampError: It is not a finite number, or not after the last frame's.
        """
        last = self._now
        if timestamp is None:
            now = 0.0 if last is None else last + self._interval
        else:
            try:
                now = float(timestamp)
            except (TypeError, ValueError) as error:
                raise TimestampError(f"timestamp is {timestamp!r}; it must be a number of seconds, or None") from error
            if not isfinite(now):
                raise TimestampError(f"timestamp is {timestamp!r}; it must be a finite number of seconds")
            if last is not None and now <= last:
                raise TimestampError(
                    f"timestamp {now:g} s is not after the last frame's {last:g} s: call reset() before another video, "
                    "or leave out frames that come twice"
                )
        self._now = now
        return now

    def reset(self) -> None:
        """Forget the last frame."""
        self._now = None
