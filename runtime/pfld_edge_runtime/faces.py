"""What was found in one photograph."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.schemes import WFLW_98, LandmarkScheme

__all__ = ["Faces"]

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Faces:
    """The faces of one photograph or video frame: arrays that run side by side, one row a face.

    Attributes:
        landmarks: ``(N, P, 2)`` float32, x and y in photograph pixels.
        boxes: ``(N, 4)`` float32 x0, y0, x1, y1: what the faces were cut by.
        scores: ``(N,)`` float32, the detector's, 0..1; NaN where no detector gave one.
        confidences: ``(N,)`` float32, how sure the landmarks are, 0..1; NaN where it was not asked for.
        ids: ``(N,)`` int64, the same for the same face in every frame of a video; -1 where nothing was tracked.
        image_size: Width and height of the photograph.
        scheme: What the points are called.
    """

    landmarks: Float
    boxes: Float
    scores: Float
    confidences: Float
    ids: NDArray[np.int64]
    image_size: tuple[int, int]
    scheme: LandmarkScheme = WFLW_98

    def __len__(self) -> int:
        """How many faces there are."""
        return len(self.landmarks)
