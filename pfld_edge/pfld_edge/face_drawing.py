"""Draws what is known of faces: landmarks, boxes, which way heads are turned, who is who."""

import math
from collections.abc import Collection

import cv2
import numpy as np
from numpy.typing import NDArray

from pfld_edge.drawing import SHIFT, draw_landmarks, subpixels
from pfld_edge_runtime import Faces, default_camera

__all__ = ["DRAWABLE", "draw_faces"]

DRAWABLE = ("points", "contours", "boxes", "pose", "ids", "confidence")

_BOX = (200, 200, 200)
_RIM = (20, 20, 20)
_TEXT = (255, 255, 255)
# x, y and z of the head as BGR; z shows where the face looks.
_AXES = ((60, 60, 255), (80, 220, 80), (255, 150, 60))
_AXIS_MILLIMETRES = 60.0


def draw_faces(photo: NDArray[np.uint8], faces: Faces, parts: Collection[str]) -> NDArray[np.uint8]:
    """Draw faces on a copy of a photograph.

    Args:
        photo: ``(H, W, 3)`` uint8, BGR; left as it is.
        faces: Of that photograph.
        parts: Some of `DRAWABLE`. Pose needs the 98 points of WFLW, ids a tracker, confidences that they were asked
            for; what isn't known isn't drawn.

    Returns:
        ``(H, W, 3)`` uint8, BGR.
    """
    canvas = draw_landmarks(photo, faces.landmarks, faces.scheme, lines="contours" in parts, points="points" in parts)
    if "pose" in parts and len(faces) and faces.scheme.num_landmarks == 98:
        _draw_axes(canvas, faces)
    for row in range(len(faces)):
        side = float(np.ptp(faces.landmarks[row], axis=0).max())
        thick = max(1, round(min(side, max(canvas.shape)) / 250))
        if "boxes" in parts:
            corners = subpixels(faces.boxes[row].reshape(2, 2))
            cv2.rectangle(canvas, corners[0].tolist(), corners[1].tolist(), _BOX, thick, cv2.LINE_AA, SHIFT)
        _write(canvas, faces.landmarks[row], _words(faces, row, parts), side)
    return canvas


def _words(faces: Faces, row: int, parts: Collection[str]) -> str:
    words = []
    if "ids" in parts and faces.ids[row] >= 0:
        words.append(f"#{faces.ids[row]}")
    if "confidence" in parts and math.isfinite(faces.confidences[row]):
        words.append(f"{faces.confidences[row]:.0%}")
    return " ".join(words)


def _write(canvas: NDArray[np.uint8], landmarks: NDArray[np.float32], words: str, side: float) -> None:
    """Write above a face, inside the photograph, light on dark."""
    if not words:
        return
    scale = min(max(side / 300, 0.4), 3.0)
    (width, height), below = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    left, top = landmarks.min(axis=0).clip(-1e6, 1e6)
    x = int(min(max(left, 0), max(canvas.shape[1] - width, 0)))
    y = int(min(max(top - below, height), canvas.shape[0]))
    for color, thick in ((_RIM, max(3, round(4 * scale))), (_TEXT, max(1, round(1.5 * scale)))):
        cv2.putText(canvas, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, color, thick, cv2.LINE_AA)


def _draw_axes(canvas: NDArray[np.uint8], faces: Faces) -> None:
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
