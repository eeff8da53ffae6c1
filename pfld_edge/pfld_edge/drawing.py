"""Draws faces on photographs: landmarks, boxes, head poses, ids and confidences."""

import math
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge.console import OutputError
from pfld_edge_calib.files import write_atomically
from pfld_edge_runtime import Faces, LandmarkScheme, default_camera
from pfld_edge_runtime.arrays import Float32Array, Uint8Array

OPEN_REGIONS = frozenset({"contour", "nose_bridge", "nose_base"})
"""Regions that are one line; all others of the scheme (eyes, brows, lips) are closed."""

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
_BOX, _TEXT = (200, 200, 200), (255, 255, 255)
# x, y and z of the head as BGR; z shows where the face looks.
_AXES = ((60, 60, 255), (80, 220, 80), (255, 150, 60))
_AXIS_MILLIMETRES = 60.0
_SMALL_FACE = 150

# cv2 takes fixed-point coordinates: four fractional bits give a sixteenth of a pixel.
SHIFT = 4
# Far outside any photograph, and still an int32 once shifted.
_LIMIT = 1e6


def draw_landmarks(
    photo: Uint8Array,
    landmarks: Float32Array,
    scheme: LandmarkScheme,
    *,
    lines: bool = True,
    points: bool = True,
) -> Uint8Array:
    """Draw every region's line and every point, anti-aliased, sized by the face, on a copy.

    `photo` is ``(H, W, 3)`` uint8 BGR, `landmarks` ``(N, P, 2)`` in its pixels, where integers are pixel edges.
    """
    canvas: Uint8Array = np.ascontiguousarray(photo).copy()
    for face in landmarks:
        # No stroke wider than the photograph calls for, however large the box.
        side = min(float(np.ptp(face, axis=0).max()), max(canvas.shape))
        places = subpixels(face)
        for name, indices in regions(scheme).items():
            color = next((value for key, value in _COLORS.items() if key in name), _COLORS["pupil"])
            if lines and len(indices) > 1:
                thick = max(1, round(side / 250))
                cv2.polylines(canvas, [places[indices]], name not in OPEN_REGIONS, color, thick, cv2.LINE_AA, SHIFT)
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


def _draw_points(canvas: Uint8Array, points: NDArray[np.int32], color: tuple[int, int, int], side: float) -> None:
    """Draw one region's points on the canvas, for a face of `side` pixels."""
    radius = max(0.8, side / 140)
    # A dark rim sets the points off from light skin; on small faces it would hide the face.
    rim = side / 350 if side > _SMALL_FACE else 0
    for stroke, size in ((_RIM, radius + rim), (color, radius)):
        for x, y in points.tolist():
            cv2.circle(canvas, (x, y), round(size * 2**SHIFT), stroke, cv2.FILLED, cv2.LINE_AA, SHIFT)


def draw_faces(photo: Uint8Array, faces: Faces, parts: Collection[str]) -> Uint8Array:
    """Draw faces on a copy of their photograph, ``(H, W, 3)`` uint8 BGR.

    `parts` has some of `DRAWABLE`. Pose needs the 98 points of WFLW, ids a tracker, confidences a `Faces` that has
    them; what is unknown is not drawn.
    """
    canvas = draw_landmarks(photo, faces.landmarks, faces.scheme, lines="contours" in parts, points="points" in parts)
    if "pose" in parts and len(faces) and faces.scheme.num_landmarks == 98:
        _draw_axes(canvas, faces)
    for row in range(len(faces)):
        side = float(np.ptp(faces.landmarks[row], axis=0).max())
        if "boxes" in parts:
            thick = max(1, round(min(side, max(canvas.shape)) / 250))
            corners = subpixels(faces.boxes[row].reshape(2, 2))
            cv2.rectangle(canvas, corners[0].tolist(), corners[1].tolist(), _BOX, thick, cv2.LINE_AA, SHIFT)
        words = [f"#{faces.ids[row]}"] if "ids" in parts and faces.ids[row] >= 0 else []
        if "confidence" in parts and math.isfinite(faces.confidences[row]):
            words.append(f"{faces.confidences[row]:.0%}")
        if words:
            _write(canvas, faces.landmarks[row], " ".join(words), side)
    return canvas


def _write(canvas: Uint8Array, landmarks: Float32Array, words: str, side: float) -> None:
    """Write above a face, inside the photograph, light on dark."""
    scale = min(max(side / 300, 0.4), 3.0)
    (width, height), below = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    left, top = landmarks.min(axis=0).clip(-1e6, 1e6)
    x = int(min(max(left, 0), max(canvas.shape[1] - width, 0)))
    y = int(min(max(top - below, height), canvas.shape[0]))
    for color, thick in ((_RIM, max(3, round(4 * scale))), (_TEXT, max(1, round(1.5 * scale)))):
        cv2.putText(canvas, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, color, thick, cv2.LINE_AA)


def _draw_axes(canvas: Uint8Array, faces: Faces) -> None:
    """Draw each head's axes from between the eyes, in the perspective of the camera that the pose was solved for."""
    pose, camera = faces.head_pose(), default_camera(faces.image_size)
    # Towards the camera, the way the face looks: the head's z runs into it.
    ends = np.diag([_AXIS_MILLIMETRES, _AXIS_MILLIMETRES, -_AXIS_MILLIMETRES])
    for row in range(len(faces)):
        points = np.concatenate([np.zeros((1, 3)), ends]) @ pose.rotation[row].T + pose.translation[row]
        if not np.isfinite(points).all() or points[:, 2].min() <= 1:
            continue
        pixels = points @ camera.T
        start, *tips = subpixels(pixels[:, :2] / pixels[:, 2:])
        side = float(np.ptp(faces.landmarks[row], axis=0).max())
        for tip, color in zip(tips, _AXES, strict=True):
            cv2.line(canvas, start.tolist(), tip.tolist(), color, max(2, round(side / 90)), cv2.LINE_AA, SHIFT)


def write_picture(path: Path, picture: Uint8Array) -> None:
    """Write ``(H, W, 3)`` uint8 BGR as PNG or JPEG, by the file's suffix, atomically.

    Raises:
        OutputError: The picture is too large for the format (a JPEG side over 65,535 pixels).
        OSError: The folder can't be made or written to.
    """
    try:
        done, data = cv2.imencode(path.suffix.lower(), picture)
    except cv2.error:
        done = False
    if not done:
        raise OutputError(
            f"{path}: a picture of {picture.shape[1]} x {picture.shape[0]} can't be written as {path.suffix}"
        )
    write_atomically(path, data.tobytes())
