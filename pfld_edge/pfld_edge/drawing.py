"""Draws landmarks on photographs."""

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime import LandmarkScheme

__all__ = ["SHIFT", "draw_landmarks", "regions", "subpixels"]

# Regions that are one line; all others of the scheme (eyes, brows, lips) are closed.
_OPEN = frozenset({"contour", "nose_bridge", "nose_base"})

# BGR by region, apart enough to tell from each other and from skin.
_COLORS: dict[str, tuple[int, int, int]] = {
    "contour": (255, 190, 60),
    "brow": (80, 220, 255),
    "nose": (120, 255, 140),
    "eye": (255, 255, 80),
    "lip": (140, 110, 255),
    "pupil": (255, 255, 255),
}
_RIM = (30, 30, 30)
_SMALL_FACE = 150

# cv2 takes fixed-point coordinates: four fractional bits give a sixteenth of a pixel.
SHIFT = 4
# Far outside any photograph, and still an int32 once shifted.
_LIMIT = 1e6


def draw_landmarks(
    photo: NDArray[np.uint8],
    landmarks: NDArray[np.float32],
    scheme: LandmarkScheme,
    *,
    lines: bool = True,
    points: bool = True,
) -> NDArray[np.uint8]:
    """Draw every region's line and every point, anti-aliased, sized by the face.

    Args:
        photo: ``(H, W, 3)`` uint8, BGR; left as it is.
        landmarks: ``(N, P, 2)`` in photograph pixels, where integers are pixel edges.
        scheme: Names the P points.
        lines: Draw the lines.
        points: Draw the points.

    Returns:
        ``(H, W, 3)`` uint8, BGR, a drawn copy.
    """
    canvas: NDArray[np.uint8] = np.ascontiguousarray(photo).copy()
    for face in landmarks:
        # No stroke wider than the photograph calls for, however large the box.
        side = min(float(np.ptp(face, axis=0).max()), max(canvas.shape))
        places = subpixels(face)
        for name, indices in regions(scheme).items():
            color = next((value for key, value in _COLORS.items() if key in name), _COLORS["pupil"])
            if lines and len(indices) > 1:
                thick = max(1, round(side / 250))
                cv2.polylines(canvas, [places[indices]], name not in _OPEN, color, thick, cv2.LINE_AA, SHIFT)
            if points:
                _draw_points(canvas, places[indices], color, side)
    return canvas


def subpixels(points: NDArray[np.floating]) -> NDArray[np.int32]:
    """Photograph pixels, where integers are edges, to cv2's fixed point with `SHIFT` bits, where they are centres."""
    places: NDArray[np.int32] = np.rint((points.clip(-_LIMIT, _LIMIT) - 0.5) * 2**SHIFT).astype(np.int32)
    return places


def regions(scheme: LandmarkScheme) -> dict[str, list[int]]:
    """Group a scheme's points by region: ``left_eye_0``, ``left_eye_1`` ... are the region ``left_eye``."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(scheme.names):
        groups.setdefault(name.rpartition("_")[0] or name, []).append(index)
    return groups


def _draw_points(
    canvas: NDArray[np.uint8], points: NDArray[np.int32], color: tuple[int, int, int], side: float
) -> None:
    """Draw one region's points on the canvas, for a face of `side` pixels."""
    radius = max(0.8, side / 140)
    # A dark rim sets the points off from light skin; on small faces it would hide the face.
    rim = side / 350 if side > _SMALL_FACE else 0
    for stroke, size in ((_RIM, radius + rim), (color, radius)):
        for x, y in points.tolist():
            cv2.circle(canvas, (x, y), round(size * 2**SHIFT), stroke, cv2.FILLED, cv2.LINE_AA, SHIFT)
