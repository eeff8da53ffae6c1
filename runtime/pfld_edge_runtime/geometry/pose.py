"""Head pose: rotation and position of heads by perspective-n-point on the rigid points of a mean adult face."""

from dataclasses import dataclass

import numpy as np

from pfld_edge_runtime.arrays import BoolArray, Float64Array
from pfld_edge_runtime.errors import LandmarkError
from pfld_edge_runtime.geometry.landmarks import check_landmarks

# Found from landmarks alone: structure from motion (Tomasi and Kanade, IJCV 1992; weak perspective, symmetric) over the
# landmarks that published networks predict on 18,230 faces: LFW, video faces and WFLW's unlabelled photographs, none of
# WFLW's test list. No scan and no published face model went into it.
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
"""WFLW points that jaw, lips and eyelids don't move.

The chin would steady the pitch, but an open mouth (15 mm) would tilt the head by 6 degrees with it.
"""

FACE_SHAPE: Float64Array = np.array(list(_PLACES.values()))
"""``(17, 3)`` millimetres, in the order of `RIGID_POINTS`: x to the photograph's right, y down, z away from the camera.

The origin is the mean of the four eye corners. The unit is fixed by 63 mm between the pupils (the mean of adults:
Dodgson, SPIE 5291, 2004). Zero pitch is the median of LFW's frontal faces.
"""
FACE_SHAPE.flags.writeable = False

_MAX_ITERATIONS = 100
_FIRST_DAMPING = 1e-3
# Faces whose points span less than this share of their distance give no pose.
_SMALLEST_SCALE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class HeadPose:
    """The poses of N heads; all angles are zero where a head faces along the camera's axis.

    A head that looks into the lens from beside the photograph's centre has a yaw and a pitch: those of its position.

    The angles give the rotation as ``Rz(roll) @ Ry(-yaw) @ Rx(-pitch)`` in the camera's axes. Turning the photograph
    about its centre changes the roll alone; a mirror image negates yaw and roll.

    Attributes:
        yaw: ``(N,)`` degrees, -90 to 90; positive: the face looks to the photograph's right.
        pitch: ``(N,)`` degrees, -180 to 180; positive: the face looks up.
        roll: ``(N,)`` degrees, -180 to 180; positive: the head leans clockwise in the photograph.
        rotation: ``(N, 3, 3)`` from the head's axes to the camera's: x to the photograph's right, y down, z away from
            the camera, as OpenCV has them.
        translation: ``(N, 3)`` millimetres from the camera to the point between the eyes. As accurate as the
            camera's focal length and the assumed 63 mm between the pupils.
    """

    yaw: Float64Array
    pitch: Float64Array
    roll: Float64Array
    rotation: Float64Array
    translation: Float64Array

    def __len__(self) -> int:
        """How many heads there are."""
        return len(self.rotation)


def default_camera(image_size: tuple[int, int]) -> Float64Array:
    """Give the ``(3, 3)`` intrinsic matrix to assume for a photograph of an unknown camera.

    Focal length of one image width (a field of view of 53 degrees, about that of a webcam or a telephone), principal
    point in the centre. Wrong for a photograph that was cut out of a larger one. A `LandmarkError` says that the size
    is no width and height.
    """
    size = np.asarray(image_size)
    if size.shape != (2,) or size.dtype.kind not in "iuf" or not (np.isfinite(size) & (size > 0)).all():
        raise LandmarkError(
            f"image_size must be the photograph's width and height, image.shape[1::-1]; found {image_size!r}"
        )
    width, height = image_size
    return np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float64)


def head_pose(landmarks: object, image_size: tuple[int, int], camera_matrix: object = None) -> HeadPose:
    """Estimate head poses: perspective-n-point of 17 rigid points of a mean adult face.

    Args:
        landmarks: ``(N, 98, 2)`` WFLW points in photograph pixels, or ``(98, 2)`` for one face.
        image_size: Width and height of the photograph in pixels.
        camera_matrix: ``(3, 3)`` intrinsic matrix of the camera, without lens distortion; None for `default_camera`.

    Returns:
        N poses; NaN for a face whose points coincide.

    Raises:
        LandmarkError: The landmarks can't be used, or `camera_matrix` is no intrinsic matrix.
    """
    points = check_landmarks(landmarks)[:, RIGID_POINTS]
    camera = default_camera(image_size) if camera_matrix is None else _checked_camera(camera_matrix)
    rotation, translation = solve_poses(points, FACE_SHAPE, camera)
    yaw, pitch, roll = _angles(rotation)
    return HeadPose(yaw, pitch, roll, rotation, translation)


def _angles(rotation: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    yaw = np.arcsin(rotation[:, 2, 0].clip(-1, 1))
    pitch = -np.arctan2(rotation[:, 2, 1], rotation[:, 2, 2])
    roll = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])
    return np.degrees(yaw), np.degrees(pitch), np.degrees(roll)


def _checked_camera(camera_matrix: object) -> Float64Array:
    try:
        camera = np.asarray(camera_matrix, np.float64)
    except (TypeError, ValueError) as error:
        raise LandmarkError(f"camera_matrix must be 3 x 3 finite numbers: {error}") from error
    if camera.shape != (3, 3) or not np.isfinite(camera).all():
        raise LandmarkError(f"camera_matrix must be 3 x 3 finite numbers; found shape {camera.shape}")
    if camera[0, 0] <= 0 or camera[1, 1] <= 0 or not np.array_equal(camera[2], (0, 0, 1)):
        raise LandmarkError("camera_matrix must read [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx and fy above 0")
    return camera


def project(
    shape: Float64Array, rotations: Float64Array, translations: Float64Array, camera: Float64Array
) -> Float64Array:
    """Project a ``(P, 3)`` shape in millimetres with N poses and a ``(3, 3)`` camera: ``(N, P, 2)`` pixels."""
    placed = (shape @ rotations.transpose(0, 2, 1) + translations[:, None]) @ camera.T
    seen: Float64Array = placed[..., :2] / placed[..., 2:]
    return seen


def solve_poses(
    points: Float64Array, shape: Float64Array, camera: Float64Array, smallest_step: float = 1e-9
) -> tuple[Float64Array, Float64Array]:
    """Solve perspective-n-point for ``(N, P, 2)`` pixels and a ``(P, 3)`` shape in millimetres, not in one plane.

    Least squares of the reprojection error. The initial pose is the scaled orthographic projection nearest to the
    points (scale and rotation from the singular value decomposition of a linear fit). Levenberg-Marquardt on rotation
    vector and translation follows, all faces side by side, each with its own damping (Marquardt, SIAM J. 1963), until
    all rotate by less than `smallest_step` radians. Gives ``(N, 3, 3)`` rotations from the shape's axes to the camera's
    and ``(N, 3)`` translations in millimetres; NaN for faces whose points coincide.
    """
    inverse = np.linalg.inv(camera)
    rays = points @ inverse[:2, :2].T + inverse[:2, 2]
    rotations, translations, valid = _weak_perspective(rays, shape)
    errors, cost = _errors(points, shape, rotations, translations, camera)
    damping = np.full(len(points), _FIRST_DAMPING)
    for _ in range(_MAX_ITERATIONS):
        steps = _steps(errors, shape, rotations, translations, camera, damping)
        moved = _rotation_matrices(steps[:, :3]) @ rotations
        shifted = translations + steps[:, 3:]
        new_errors, new_cost = _errors(points, shape, moved, shifted, camera)
        better = new_cost < cost
        rotations = np.where(better[:, None, None], moved, rotations)
        translations = np.where(better[:, None], shifted, translations)
        errors = np.where(better[:, None, None], new_errors, errors)
        cost = np.where(better, new_cost, cost)
        damping = np.where(better, damping / 10, damping * 10).clip(1e-12, 1e12)
        if (np.abs(steps[:, :3]).max(axis=1, initial=0) < smallest_step).all():
            break
    rotations[~valid], translations[~valid] = np.nan, np.nan
    return rotations, translations


def _weak_perspective(rays: Float64Array, shape: Float64Array) -> tuple[Float64Array, Float64Array, BoolArray]:
    middle, center = shape.mean(axis=0), rays.mean(axis=1)
    linear = np.einsum("kp,npi->nik", np.linalg.pinv(shape - middle), rays - center[:, None])
    left, scales, right = np.linalg.svd(linear, full_matrices=False)
    rows = left @ right
    rotations = np.concatenate([rows, np.cross(rows[:, 0], rows[:, 1])[:, None]], axis=1)
    valid = scales[:, 0] * np.abs(shape).max() > _SMALLEST_SCALE
    depths = 1 / np.where(valid, scales.mean(axis=1), 1 / np.abs(shape).max())
    centers = np.column_stack([center * depths[:, None], depths])
    return rotations, centers - rotations @ middle, valid


def _errors(
    points: Float64Array, shape: Float64Array, rotations: Float64Array, translations: Float64Array, camera: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """``(N, P, 2)`` reprojection errors in pixels and ``(N,)`` their squares' sum, infinite behind the camera."""
    depths = shape @ rotations[:, 2, :, None] + translations[:, 2, None, None]
    seen = np.asarray(depths.min(axis=(1, 2), initial=np.inf) > 0)
    ahead = np.where(seen[:, None], translations, (0.0, 0.0, 1e6))
    errors = project(shape, rotations, ahead, camera) - points
    return errors, np.where(seen, (errors**2).sum(axis=(1, 2)), np.inf)


def _steps(
    errors: Float64Array,
    shape: Float64Array,
    rotations: Float64Array,
    translations: Float64Array,
    camera: Float64Array,
    damping: Float64Array,
) -> Float64Array:
    """``(N, 6)`` damped Gauss-Newton steps: a rotation vector that goes before the rotation, and a translation."""
    turned = shape @ rotations.transpose(0, 2, 1)
    x, y, z = np.moveaxis(turned + translations[:, None], 2, 0)
    zero = np.zeros_like(z)
    by_place = np.stack([1 / z, zero, -x / z**2, zero, 1 / z, -y / z**2], axis=-1).reshape(*z.shape, 2, 3)
    by_place = camera[:2, :2] @ by_place
    # d(exp(w) q) / dw = -[q]x, so each row v of the derivative by place turns into q x v.
    by_turn = np.cross(turned[:, :, None], by_place)
    jacobian = np.concatenate([by_turn, by_place], axis=-1).reshape(len(errors), 2 * len(shape), 6)
    normal = jacobian.transpose(0, 2, 1) @ jacobian
    gradient = jacobian.transpose(0, 2, 1) @ errors.reshape(len(errors), 2 * len(shape), 1)
    diagonal = np.einsum("nii->ni", normal)
    diagonal += diagonal * damping[:, None] + 1e-12
    return -np.linalg.solve(normal, gradient)[:, :, 0]


def _rotation_matrices(vectors: Float64Array) -> Float64Array:
    angles = np.linalg.norm(vectors, axis=1)[:, None, None]
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(-1, 3, 3)
    # np.sinc(t) is sin(pi t) / (pi t), and safe at zero.
    sine, half = np.sinc(angles / np.pi), np.sinc(angles / (2 * np.pi))
    return np.asarray(np.eye(3) + sine * cross + half**2 / 2 * (cross @ cross))
