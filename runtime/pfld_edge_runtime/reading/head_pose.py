"""Which way heads are turned, and where they are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.errors import LandmarkError
from pfld_edge_runtime.reading.face_shape import FACE_SHAPE, RIGID_POINTS
from pfld_edge_runtime.reading.landmark_array import check_landmarks
from pfld_edge_runtime.reading.perspective import solve_poses

__all__ = ["HeadPose", "default_camera", "head_pose"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HeadPose:
    """The poses of N heads; zero is a head that faces along the camera's axis.

    A head away from the photograph's centre that looks into the lens has the angles of its place, as it must turn to do
    so.

    The angles give the rotation as ``Rz(roll) @ Ry(-yaw) @ Rx(-pitch)`` in the camera's axes. Turning the photograph
    about its centre changes the roll alone; a mirror image negates yaw and roll.

    Attributes:
        yaw: ``(N,)`` degrees, -90 to 90; positive: the face looks to the photograph's right.
        pitch: ``(N,)`` degrees, -180 to 180; positive: the face looks up.
        roll: ``(N,)`` degrees, -180 to 180; positive: the head leans clockwise in the photograph.
        rotation: ``(N, 3, 3)`` from the head's axes to the camera's: x to the photograph's right, y down, z away from
            the camera, as OpenCV has them.
        translation: ``(N, 3)`` millimetres from the camera to the point between the eyes. As right as the camera's
            focal length and the 63 mm between the pupils of a mean adult.
    """

    yaw: Array
    pitch: Array
    roll: Array
    rotation: Array
    translation: Array

    def __len__(self) -> int:
        """How many heads there are."""
        return len(self.rotation)


def default_camera(image_size: tuple[int, int]) -> Array:
    """Guess the camera of a photograph of which nothing is known.

    Args:
        image_size: Width and height in pixels.

    Returns:
        ``(3, 3)`` intrinsic matrix: focal length of one image width (a field of view of 53 degrees, about that of a
        webcam or a telephone), principal point in the centre. Wrong for a photograph that was cut out of a larger one.
    """
    width, height = image_size
    return np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float64)


def head_pose(landmarks: object, image_size: tuple[int, int], camera_matrix: object = None) -> HeadPose:
    """Find which way heads are turned: perspective-n-point of 17 rigid points of a mean adult face.

    Args:
        landmarks: ``(N, 98, 2)`` WFLW points in photograph pixels, or ``(98, 2)`` for one face.
        image_size: Width and height of the photograph in pixels.
        camera_matrix: ``(3, 3)`` intrinsic matrix of the camera, without lens distortion; None for `default_camera`.

    Returns:
        N poses; NaN for a face whose points coincide.

    Raises:
        LandmarkError: The landmarks can't be read, or the camera matrix is none.
    """
    points = check_landmarks(landmarks)[:, RIGID_POINTS]
    camera = default_camera(image_size) if camera_matrix is None else _checked_camera(camera_matrix)
    rotation, translation = solve_poses(points, FACE_SHAPE, camera)
    yaw, pitch, roll = _angles(rotation)
    return HeadPose(yaw, pitch, roll, rotation, translation)


def _angles(rotation: Array) -> tuple[Array, Array, Array]:
    """Yaw, pitch and roll in degrees of ``(N, 3, 3)`` rotations."""
    yaw = np.arcsin(rotation[:, 2, 0].clip(-1, 1))
    pitch = -np.arctan2(rotation[:, 2, 1], rotation[:, 2, 2])
    roll = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])
    return np.degrees(yaw), np.degrees(pitch), np.degrees(roll)


def _checked_camera(camera_matrix: object) -> Array:
    camera = np.asarray(camera_matrix, np.float64)
    if camera.shape != (3, 3) or not np.isfinite(camera).all():
        raise LandmarkError(f"camera_matrix must be 3 x 3 finite numbers; found shape {camera.shape}")
    if camera[0, 0] <= 0 or camera[1, 1] <= 0 or not np.array_equal(camera[2], (0, 0, 1)):
        raise LandmarkError("camera_matrix must read [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx and fy above 0")
    return camera
