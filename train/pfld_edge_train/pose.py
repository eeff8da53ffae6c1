"""Yaw, pitch and roll of the heads of a batch, by the runtime's perspective-n-point.

They are the targets of PFLD's auxiliary network (Guo et al., arXiv 1902.10859, section 3.2). The paper compares 11
landmarks with a mean frontal face; here 17 rigid points are fitted to the runtime's face shape.
"""

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from pfld_edge_runtime.geometry.pose import FACE_SHAPE, RIGID_POINTS, solve_poses

POSE_SCHEME = "wflw-98"
"""The only landmark scheme with 3-D points."""

FOCAL_LENGTH = 5.0
"""Assumed focal length in sides of the crop; the optical axis meets the crop's centre.

A photograph's focal length is about its width, and a crop is about a fifth of that.
"""

_CAMERA = np.array([[FOCAL_LENGTH, 0, 0.5], [0, FOCAL_LENGTH, 0.5], [0, 0, 1]])
# Labelled points must span space: the determinant of their covariance over the cube of its mean is 0.37 for all 17, 0
# for points on a plane.
_SMALLEST_SPREAD = 1e-2


def head_angles(landmarks: Tensor, weights: Tensor | None = None) -> Tensor:
    """Estimate yaw, pitch and roll, by the conventions of `pfld_edge_runtime.HeadPose`, relative to the crop's centre.

    `landmarks` are ``(N, 98, 2)`` fractions of the crop, `weights` ``(N, 98)``, 0 for unlabelled (None: all labelled).
    Gives ``(N, 3)`` float32 radians on the landmarks' device, without gradient; NaN for faces whose labelled points
    coincide or lie in a plane of the head.
    """
    points = landmarks.detach().cpu().double().numpy()[:, RIGID_POINTS]
    known = np.ones(points.shape[:2], bool) if weights is None else weights.cpu().numpy()[:, RIGID_POINTS] > 0
    angles = np.full((len(points), 3), np.nan)
    for labelled in np.unique(known, axis=0):
        shape = FACE_SHAPE[labelled]
        scatter = np.cov(shape.T) if len(shape) > 3 else np.zeros((3, 3))
        if np.linalg.det(scatter) <= _SMALLEST_SPREAD * (np.trace(scatter) / 3) ** 3:
            continue
        rows = np.flatnonzero((known == labelled).all(axis=1))
        rotations, _ = solve_poses(points[rows][:, labelled], shape, _CAMERA, smallest_step=1e-4)
        solved = np.isfinite(rotations[:, 0, 0])
        angles[rows[solved]] = Rotation.from_matrix(rotations[solved]).as_euler("ZYX")[:, [1, 2, 0]] * (-1, -1, 1)
    return torch.from_numpy(angles).to(landmarks.device, torch.float32)
