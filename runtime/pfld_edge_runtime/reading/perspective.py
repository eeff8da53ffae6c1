"""Perspective-n-point for many faces at once: the rotation and the place of a known shape, seen by a known camera."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["project", "solve_poses"]

Array = NDArray[np.float64]

_MOST_STEPS = 100
_SMALLEST_STEP = 1e-9
_FIRST_DAMPING = 1e-3
# Faces whose points span less than this share of their distance have no shape to read a pose from.
_SMALLEST_SCALE = 1e-9


def project(shape: Array, rotations: Array, translations: Array, camera: Array) -> Array:
    """Project a shape into the photograph.

    Args:
        shape: ``(P, 3)`` in millimetres.
        rotations: ``(N, 3, 3)`` from the shape's axes to the camera's.
        translations: ``(N, 3)`` of the shape's origin in the camera's axes, in millimetres.
        camera: ``(3, 3)`` intrinsic matrix, pixels.

    Returns:
        ``(N, P, 2)`` pixels.
    """
    placed = (shape @ rotations.transpose(0, 2, 1) + translations[:, None]) @ camera.T
    seen: Array = placed[..., :2] / placed[..., 2:]
    return seen


def solve_poses(points: Array, shape: Array, camera: Array) -> tuple[Array, Array]:
    """Find where a shape stands from its projections: least squares of the reprojection, in pixels.

    The start is direct: the scaled orthographic projection nearest to the points (scale and rotation from the singular
    value decomposition of a linear fit). Levenberg-Marquardt on rotation vector and translation follows, all faces side
    by side, each with its own damping (Marquardt, SIAM J. 1963).

    Args:
        points: ``(N, P, 2)`` pixels.
        shape: ``(P, 3)`` millimetres, not in one plane, origin anywhere.
        camera: ``(3, 3)`` intrinsic matrix, pixels.

    Returns:
        Rotations ``(N, 3, 3)`` and translations ``(N, 3)``, as for `project`; NaN for faces whose points coincide.
    """
    inverse = np.linalg.inv(camera)
    rays = points @ inverse[:2, :2].T + inverse[:2, 2]
    rotations, translations, readable = _weak_perspective(rays, shape)
    errors, cost = _errors(points, shape, rotations, translations, camera)
    damping = np.full(len(points), _FIRST_DAMPING)
    for _ in range(_MOST_STEPS):
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
        if (np.abs(steps[:, :3]).max(axis=1, initial=0) < _SMALLEST_STEP).all():
            break
    rotations[~readable], translations[~readable] = np.nan, np.nan
    return rotations, translations


def _weak_perspective(rays: Array, shape: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Start by scaled orthographic projection; ``(N,)`` tells which faces have any extent."""
    middle, center = shape.mean(axis=0), rays.mean(axis=1)
    linear = np.einsum("kp,npi->nik", np.linalg.pinv(shape - middle), rays - center[:, None])
    left, scales, right = np.linalg.svd(linear, full_matrices=False)
    rows = left @ right
    rotations = np.concatenate([rows, np.cross(rows[:, 0], rows[:, 1])[:, None]], axis=1)
    readable = scales[:, 0] * np.abs(shape).max() > _SMALLEST_SCALE
    depths = 1 / np.where(readable, scales.mean(axis=1), 1 / np.abs(shape).max())
    centers = np.column_stack([center * depths[:, None], depths])
    return rotations, centers - rotations @ middle, readable


def _errors(
    points: Array, shape: Array, rotations: Array, translations: Array, camera: Array
) -> tuple[Array, NDArray[np.float64]]:
    """``(N, P, 2)`` reprojection errors in pixels and ``(N,)`` their squares' sum, infinite behind the camera."""
    depths = shape @ rotations[:, 2, :, None] + translations[:, 2, None, None]
    seen = np.asarray(depths.min(axis=(1, 2), initial=np.inf) > 0)
    ahead = np.where(seen[:, None], translations, (0.0, 0.0, 1e6))
    errors = project(shape, rotations, ahead, camera) - points
    return errors, np.where(seen, (errors**2).sum(axis=(1, 2)), np.inf)


def _steps(
    errors: Array, shape: Array, rotations: Array, translations: Array, camera: Array, damping: Array
) -> NDArray[np.float64]:
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


def _rotation_matrices(vectors: Array) -> Array:
    """Rodrigues' formula for ``(N, 3)`` rotation vectors."""
    angles = np.linalg.norm(vectors, axis=1)[:, None, None]
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(-1, 3, 3)
    # np.sinc(t) is sin(pi t) / (pi t), and safe at zero.
    sine, half = np.sinc(angles / np.pi), np.sinc(angles / (2 * np.pi))
    return np.asarray(np.eye(3) + sine * cross + half**2 / 2 * (cross @ cross))
