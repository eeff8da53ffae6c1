"""Finds the rigid 3-D shape of WFLW's points from landmarks alone, for `pfld_edge_runtime.geometry.pose`.

    python train/recipes/face_shape.py LABELS

LABELS is the output folder of `pseudo_label.py`; none of its faces is in WFLW's test list. Structure from motion under
weak perspective (Tomasi and Kanade, IJCV 1992) by alternation: given the shape, each face's scale and rotation are a
linear fit and the nearest scaled rotation; given those, the shape is a linear fit. Every face counts beside its mirror
image, so the shape is symmetric. Faces that fit badly have lower (Cauchy) weights.

The origin is the mean of the four eye corners, the unit follows from a distance of 63 mm between the pupils (the mean
of adults: Dodgson, "Variation and extrema of human interpupillary distance", SPIE 5291, 2004), and zero pitch is the
median of LFW's faces that look to neither side, press photographs of people who look at the camera.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import read_points_csv
from pfld_edge_runtime import WFLW_98
from pfld_edge_runtime.geometry.pose import solve_poses

Array = NDArray[np.float64]

# What neither jaw nor lips nor lids move: the ends of the upper brows, the nose, the corners of the eyes.
RIGID = (33, 37, 42, 46, *range(51, 60), 60, 64, 68, 72)
PUPILS = (96, 97)
POINTS = (*RIGID, *PUPILS)
EYE_CORNERS = [POINTS.index(point) for point in (60, 64, 68, 72)]
MIRROR = [POINTS.index(WFLW_98.mirror[point]) for point in POINTS]
PUPIL_DISTANCE = 63.0
PRESS_PHOTOGRAPHS = "lfw.csv"
LOOKS_AHEAD = 10.0
# Press photographers stand off; the pictures are cut from larger ones, 176 pixels of each are left.
LONG_LENS = 2000.0
ROUNDS = 100


def centred(landmarks: Array) -> Array:
    """The points around their mean, each face of unit size: ``(N, P, 2)``."""
    points = landmarks[:, POINTS] - landmarks[:, POINTS].mean(axis=1, keepdims=True)
    size: Array = np.sqrt((points**2).sum(axis=(1, 2), keepdims=True))
    return np.asarray(points / size)


def projections(points: Array, shape: Array) -> tuple[Array, Array]:
    """Each face's scale ``(N,)`` and the first two rows of its rotation ``(N, 2, 3)``."""
    linear = np.einsum("kp,npi->nik", np.linalg.pinv(shape), points)
    left, scales, right = np.linalg.svd(linear, full_matrices=False)
    return scales.mean(axis=1), left @ right


def fitted_shape(points: Array, maps: Array, weights: Array) -> Array:
    """The symmetric shape ``(P, 3)`` that the faces' ``(N, 2, 3)`` projections explain best."""
    normal = np.einsum("n,nij,nik->jk", weights, maps, maps)
    shape = np.linalg.solve(normal, np.einsum("n,nij,npi->jp", weights, maps, points)).T
    shape = (shape + shape[MIRROR] * (-1, 1, 1)) / 2
    shape -= shape.mean(axis=0)
    return np.asarray(shape / np.sqrt((shape[:, :2] ** 2).sum()))


def structure(points: Array) -> Array:
    """The shape of faces and their mirror images, x to the photograph's right, y down, z away from the camera."""
    both = np.concatenate([points, points[:, MIRROR] * (-1, 1)])
    # The sign of depth is all that must be said beforehand: noses point to the camera.
    depth = [-0.1 if point in range(51, 60) else 0.0 for point in POINTS]
    shape = np.column_stack([np.median(both, axis=0), depth])
    weights = np.ones(len(both))
    for _ in range(ROUNDS):
        scales, rows = projections(both, shape)
        maps = scales[:, None, None] * rows
        errors = ((both - np.einsum("nij,pj->npi", maps, shape)) ** 2).sum(axis=(1, 2))
        weights = 1 / (1 + errors / np.median(errors))
        shape = fitted_shape(both, maps, weights)
    return shape


def angles(rows: Array) -> tuple[Array, Array]:
    """Yaw and pitch in degrees by the runtime's convention, ``(N,)`` each."""
    last = np.cross(rows[:, 0], rows[:, 1])
    return np.degrees(np.arcsin(last[:, 0].clip(-1, 1))), -np.degrees(np.arctan2(last[:, 1], last[:, 2]))


def tilted(shape: Array, degrees: float) -> Array:
    """Turn the shape about the axis through the ears by a pitch."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.asarray(shape @ np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]))


def frontal_pitch(landmarks: Array, shape: Array) -> tuple[float, int]:
    """The median pitch of faces that look ahead, as the runtime's own solver reads it, and how many they are."""
    camera = np.diag([LONG_LENS, LONG_LENS, 1.0])
    rotations, _ = solve_poses(
        landmarks[:, RIGID] - landmarks[:, RIGID].mean(axis=1, keepdims=True), shape[: len(RIGID)], camera
    )
    yaw, pitch = angles(rotations[:, :2])
    ahead = np.abs(yaw) < LOOKS_AHEAD
    return float(np.median(pitch[ahead])), int(ahead.sum())


def main() -> None:
    """Print the shape in millimetres and how well faces fit it."""
    folder = Path(sys.argv[1])
    sources = {path.name: read_points_csv(path) for path in sorted(folder.glob("*.csv"))}
    stacked = {
        name: np.stack([face.landmarks for face in faces if face.landmarks is not None]).astype(np.float64)
        for name, faces in sources.items()
    }
    points = centred(np.concatenate(list(stacked.values())))
    shape = structure(points)
    shape -= shape[EYE_CORNERS].mean(axis=0)
    shape *= PUPIL_DISTANCE / np.linalg.norm(shape[POINTS.index(96)] - shape[POINTS.index(97)])
    zero, ahead = frontal_pitch(stacked[PRESS_PHOTOGRAPHS], shape)
    shape = tilted(shape, zero)
    middle = shape - shape.mean(axis=0)
    scales, rows = projections(points, middle)
    errors = np.linalg.norm(points / scales[:, None, None] - np.einsum("nij,pj->npi", rows, middle), axis=2)
    yaws = angles(rows)[0]
    write = sys.stdout.write
    write(
        f"{len(points)} faces, yaw {np.quantile(yaws, 0.01):.0f} to {np.quantile(yaws, 0.99):.0f} degrees (1 to 99 %)\n"
    )
    write(f"zero pitch: {zero:+.2f} degrees of the unturned shape, median of {ahead} faces\n")
    for point, place, error in zip(POINTS, shape, np.median(errors, axis=0), strict=True):
        coordinates = ", ".join(f"{value:.1f}" for value in place)
        write(f"    {point}: ({coordinates}),  # {WFLW_98.names[point]}, {error:.1f} mm\n")


if __name__ == "__main__":
    main()
