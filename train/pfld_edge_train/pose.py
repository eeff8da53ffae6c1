"""Yaw, pitch and roll of the heads of a batch: perspective-n-point of many augmented faces at once, in torch.

They are the targets of PFLD's auxiliary network (Guo et al., arXiv 1902.10859, section 3.2). The paper compares 11
landmarks with a mean frontal face; here 17 rigid points are fitted to the runtime's face shape.
"""

import torch
from torch import Tensor

from pfld_edge_runtime.geometry.pose import FACE_SHAPE, RIGID_POINTS

POSE_SCHEME = "wflw-98"
"""The only landmark scheme with 3-D points."""

FOCAL_LENGTH = 5.0
"""Assumed focal length in sides of the crop; the optical axis meets the crop's centre.

A photograph's focal length is about its width, and a crop is about a fifth of that.
"""

_STEPS = 3
_DAMPING = 1e-3
# Known points must span space: the determinant of their scatter over the cube of its mean is 0.37 for all 17, 0 for
# points on a plane.
_SMALLEST_SPREAD = 1e-2
_SMALLEST_SCALE = 1e-6


def head_angles(landmarks: Tensor, weights: Tensor | None = None) -> Tensor:
    """Estimate yaw, pitch and roll, by the conventions of `pfld_edge_runtime.HeadPose`, relative to the crop's centre.

    The start is the scaled orthographic projection nearest to a weighted linear fit. Gauss-Newton steps on the
    reprojection error follow, all faces at once, without a branch that waits for the device. `landmarks` are ``(N, 98,
    2)`` fractions of the crop, `weights` ``(N, 98)``, 0 for unlabelled (None: all 1). Gives ``(N, 3)`` radians on the
    landmarks' device, without gradient; NaN for faces whose labelled points coincide or lie in a plane of the head.
    """
    with torch.no_grad(), torch.autocast(landmarks.device.type, enabled=False):
        points = list(RIGID_POINTS)
        rays = (landmarks[:, points].float() - 0.5) / FOCAL_LENGTH
        known = torch.ones_like(rays[..., 0]) if weights is None else weights[:, points].float()
        shares = known / known.sum(dim=1, keepdim=True).clamp_min(1e-12)
        shape = torch.tensor(FACE_SHAPE, dtype=torch.float32, device=rays.device)
        shape = (shape - shape.mean(dim=0)) / shape.std()
        rotations, places, readable = _weak_perspective(rays, shape, shares)
        for _ in range(_STEPS):
            rotations, places = _step(rays, shape, shares, rotations, places)
        angles = _angles(rotations)
        return torch.where(readable[:, None], angles, torch.nan)


def _weak_perspective(rays: Tensor, shape: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Start: rotations ``(N, 3, 3)``, places ``(N, 3)`` of the shape's origin, and ``(N,)`` which faces can be read."""
    middle, center = shares @ shape, (shares[..., None] * rays).sum(dim=1)
    local = shape - middle[:, None]
    weighted = (shares[..., None] * local).mT
    scatter = weighted @ local
    spread = torch.linalg.det(scatter) / (scatter.diagonal(dim1=1, dim2=2).mean(dim=1) ** 3).clamp_min(1e-12)
    readable = spread > _SMALLEST_SPREAD
    scatter = torch.where(readable[:, None, None], scatter, torch.eye(3, device=rays.device))
    linear = torch.linalg.solve_ex(scatter, weighted @ (rays - center[:, None]))[0].mT
    # Nearest scaled rotation by the polar decomposition: for a 2 x 2 matrix its square root has a closed form.
    gram = linear @ linear.mT
    root = (gram[:, 0, 0] * gram[:, 1, 1] - gram[:, 0, 1] * gram[:, 1, 0]).clamp_min(0).sqrt()
    total = (gram[:, 0, 0] + gram[:, 1, 1] + 2 * root).clamp_min(1e-24).sqrt()
    stretch = (gram + root[:, None, None] * torch.eye(2, device=rays.device)) / total[:, None, None]
    readable = readable & (total > _SMALLEST_SCALE) & (root > 1e-3 * total**2)
    stretch = torch.where(readable[:, None, None], stretch, torch.eye(2, device=rays.device))
    rows = torch.linalg.solve_ex(stretch, linear)[0]
    rotations = torch.cat([rows, torch.linalg.cross(rows[:, :1], rows[:, 1:])], dim=1)
    depth = torch.where(readable, 2 / total, 1.0)[:, None]
    places = torch.cat([center * depth, depth], dim=1) - (rotations @ middle[:, :, None])[:, :, 0]
    return rotations, places, readable


def _step(rays: Tensor, shape: Tensor, shares: Tensor, rotations: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """One damped Gauss-Newton step: a rotation vector that goes before the rotation, and the place over its depth."""
    rotated = shape @ rotations.mT
    x, y, z = rotated.unbind(dim=2)
    depth = places[:, 2:]
    # Everything in units of the face's distance: the six unknowns are then of one size, which float32 needs.
    inverse = 1 / (z + depth).clamp_min(1e-3 * depth.abs())
    u, v = (x + places[:, :1]) * inverse, (y + places[:, 1:2]) * inverse
    zero, far = torch.zeros_like(u), depth * inverse
    across = torch.stack([-y * u * inverse, (z + x * u) * inverse, -y * inverse, far, zero, -u * far], dim=2)
    down = torch.stack([-(z + y * v) * inverse, x * v * inverse, x * inverse, zero, far, -v * far], dim=2)
    jacobian = torch.cat([across, down], dim=1)
    errors = torch.cat([u - rays[..., 0], v - rays[..., 1]], dim=1)[..., None]
    weighted = (jacobian * torch.cat([shares, shares], dim=1)[..., None]).mT
    normal = weighted @ jacobian
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal.mul_(1 + _DAMPING).add_(1e-12)
    change = -torch.linalg.solve_ex(normal, weighted @ errors)[0][:, :, 0]
    return _rotation_matrices(change[:, :3]) @ rotations, places + change[:, 3:] * depth


def _rotation_matrices(vectors: Tensor) -> Tensor:
    """Rodrigues' formula: ``(N, 3)`` rotation vectors to ``(N, 3, 3)`` matrices."""
    angles = torch.linalg.vector_norm(vectors, dim=1)[:, None, None]
    x, y, z = vectors.unbind(dim=1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)
    # torch.sinc(t) is sin(pi t) / (pi t), and safe at zero.
    sine, half = torch.sinc(angles / torch.pi), torch.sinc(angles / (2 * torch.pi))
    return torch.eye(3, device=vectors.device) + sine * cross + half**2 / 2 * (cross @ cross)


def _angles(rotations: Tensor) -> Tensor:
    yaw = torch.asin(rotations[:, 2, 0].clamp(-1, 1))
    pitch = -torch.atan2(rotations[:, 2, 1], rotations[:, 2, 2])
    roll = torch.atan2(rotations[:, 1, 0], rotations[:, 0, 0])
    return torch.stack([yaw, pitch, roll], dim=1)
