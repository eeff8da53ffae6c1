"""Notices cuts: whether a frame shows the scene of the frame before."""

from enum import Enum

import numpy as np
from numpy.typing import NDArray

__all__ = ["Change", "SceneCuts"]

_ROWS = 64
"""About as many lines of the frame are looked at, and as many columns as fit; the rest is never read."""

_BLOCK = 4
"""That many samples each way are averaged, so that texture and noise don't count."""

_FLAT = 3.0
"""Deviation in grey levels under which a frame (black, white, fog) tells nothing of its scene."""

_CUT = 0.35
_DOUBT = 0.6
"""Correlations below which it is a cut, and may be one. Of neighbouring clips of 250 video faces (youtube68), 90 %
correlate by less than 0.35 and 99 % by less than 0.6. Of pans by 5 % of the width in one frame (120 WFLW photographs),
99 % correlate by more than 0.5; a flash or half the exposure leaves more than 0.85."""


class Change(Enum):
    """What became of the scene."""

    SAME = "same"
    DOUBTFUL = "doubtful"
    CUT = "cut"


class SceneCuts:
    """Remembers a few hundred numbers of the last frame that showed anything."""

    def __init__(self) -> None:
        self._last: NDArray[np.float64] | None = None
        self._shape: tuple[int, ...] = ()

    def __call__(self, image: NDArray[np.generic]) -> Change:
        """Compare a frame with the last.

        Args:
            image: ``(H, W, C)``, uint8 or floating point; no copy is made of it. Another size than the last frame's is
                a cut: pixels of the one are no pixels of the other.
        """
        last, known = self._last, self._shape
        signature, self._shape = _signature(image), image.shape[:2]
        resized = known not in ((), self._shape)
        if signature is not None or resized:
            self._last = signature
        if resized:
            return Change.CUT
        if signature is None or last is None:
            return Change.SAME
        likeness = float((signature * last).mean())
        return Change.CUT if likeness < _CUT else Change.DOUBTFUL if likeness < _DOUBT else Change.SAME

    def reset(self) -> None:
        """Forget the last frame."""
        self._last, self._shape = None, ()


def _signature(image: NDArray[np.generic]) -> NDArray[np.float64] | None:
    """Block means of a strided sample, less their mean and over their deviation; None for a frame without contrast."""
    step = max(1, image.shape[0] // _ROWS)
    sample = image[step // 2 :: step, step // 2 :: step, image.shape[2] // 2].astype(np.float64)
    rows, columns = (max(1, length // _BLOCK) for length in sample.shape)
    sample = sample[: rows * _BLOCK, : columns * _BLOCK]
    blocks = sample.reshape(rows, -1, columns, sample.shape[1] // columns).mean(axis=(1, 3))
    contrast = float(blocks.std()) * (255 if image.dtype != np.uint8 else 1)
    # Not `contrast < _FLAT`: NaN pixels must give no signature either.
    if not contrast >= _FLAT:
        return None
    standard: NDArray[np.float64] = (blocks - blocks.mean()) / blocks.std()
    return standard
