"""Where the rigid points of a face lie in space.

Found by ``train/recipes/face_shape.py`` from landmarks alone: structure from motion (Tomasi and Kanade, IJCV 1992; weak
perspective, symmetric) over the landmarks that published networks see on 18,230 faces: LFW, video faces and WFLW's
unlabelled photographs, none of WFLW's test list. No scan and no published face model went into it.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["FACE_SHAPE", "RIGID_POINTS"]

_PLACES: dict[int, tuple[float, float, float]] = {
    33: (-54.8, -12.0, 6.8),  # outer ends of the brows
    46: (54.8, -12.0, 6.8),
    37: (-13.6, -19.0, -15.0),  # their inner ends
    42: (13.6, -19.0, -15.0),
    51: (0.0, -1.6, -16.5),  # bridge of the nose, down to its tip
    52: (0.0, 11.2, -24.6),
    53: (0.0, 23.9, -32.3),
    54: (0.0, 36.2, -39.5),
    55: (-16.3, 42.3, -17.5),  # its base, wing to wing
    56: (-8.2, 44.1, -22.1),
    57: (0.0, 45.7, -25.5),
    58: (8.2, 44.1, -22.1),
    59: (16.3, 42.3, -17.5),
    60: (-44.8, -0.2, 3.4),  # outer and inner corners of the eyes
    72: (44.8, -0.2, 3.4),
    64: (-17.5, 0.2, -3.4),
    68: (17.5, 0.2, -3.4),
}

RIGID_POINTS: tuple[int, ...] = tuple(_PLACES)
"""WFLW points that neither jaw nor lips nor lids move.

The chin would steady the pitch, but an open mouth (15 mm) would tilt the head by 6 degrees with it.
"""

FACE_SHAPE: NDArray[np.float64] = np.array(list(_PLACES.values()))
"""``(17, 3)`` millimetres, in the order of `RIGID_POINTS`: x to the photograph's right, y down, z away from the camera.

The origin is the mean of the four eye corners. The unit is fixed by 63 mm between the pupils (the mean of adults:
Dodgson, SPIE 5291, 2004). Zero pitch is the median of LFW's faces that look to neither side.
"""
FACE_SHAPE.flags.writeable = False
