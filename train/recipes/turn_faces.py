"""Rotates labelled faces out of the image plane, since few faces of the data sets are in large pose.

    python train/recipes/turn_faces.py LABELS IMAGES OUT [SEED]

LABELS is the output folder of `pseudo_label.py`, IMAGES what its image columns are relative to. Writes OUT/images and
OUT/turned.csv: a line for each face, points and confidences as in the labels. Faces of the validation split of the
bundled models' training are left out.

After face profiling (Zhu et al., "Face Alignment Across Large Poses: A 3D Solution", CVPR 2016, section 4.2), with
landmarks alone instead of a 3-D scan: a mean depth of all 98 points comes from the labels (structure from motion), the
points and a ring of background make a triangle mesh, its vertices rotate, triangles that then face away are dropped,
nearer ones are drawn over farther ones. Points of the cheek that would end behind the face move to its outline, where
WFLW's annotators put them, with half the confidence. Beyond some 30 degrees that is too coarse: `pseudo_label.py`
labels the drawn faces again.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pseudo_label import label_row, write_labels
from rich.progress import track
from scipy.spatial import Delaunay

from pfld_edge_calib import Face, read_points_csv
from pfld_edge_runtime import WFLW_98, CropWindows, crop_faces
from pfld_edge_runtime.geometry.pose import FACE_SHAPE, RIGID_POINTS, solve_poses
from pfld_edge_train.face_cache import split_groups

Array = NDArray[np.float64]

# How often a face of each source is turned, and what its groups are.
SOURCES = {"wflw.csv": (3.0, "image"), "youtube68.csv": (1.0, "person"), "lfw.csv": (0.1, "person")}
VALIDATION, SPLIT_SEED = 0.04, 0
LARGEST_YAW = 75.0
SIDE, ROOM = 208, 2.1
CONTOUR = np.arange(33)
LONG_LENS = 2000.0
# Forehead points in millimetres of the runtime's face shape; no landmark lies there.
FOREHEAD = np.array([(-62, -45, 25), (-40, -62, 8), (-15, -70, -2), (15, -70, -2), (40, -62, 8), (62, -45, 25)], float)


@dataclass(frozen=True, slots=True)
class Solved:
    """A labelled face with its pose: ``(3, 3)`` rotation from head to camera, and pixels a millimetre."""

    face: Face
    rotation: Array
    scale: float


def solved(faces: list[Face]) -> list[Solved]:
    """Find each face's pose with a long focal length."""
    points = np.stack([face.landmarks for face in faces if face.landmarks is not None]).astype(np.float64)
    rigid = points[:, RIGID_POINTS]
    camera = np.diag([LONG_LENS, LONG_LENS, 1.0])
    rotations, translations = solve_poses(rigid - rigid.mean(axis=1, keepdims=True), FACE_SHAPE, camera)
    scales = LONG_LENS / translations[:, 2]
    return [Solved(*parts) for parts in zip(faces, rotations, scales.tolist(), strict=True)]


def mean_shape(faces: list[Solved]) -> Array:
    """The 98 points in space, ``(98, 3)`` mm: the linear fit over faces of known pose, made symmetric."""
    points = np.stack([item.face.landmarks for item in faces if item.face.landmarks is not None]).astype(np.float64)
    confidence = np.stack([_confidence(item.face) for item in faces]).astype(np.float64)
    maps = np.stack([item.scale * item.rotation[:2] for item in faces])
    origin = points[:, RIGID_POINTS].mean(axis=1) - maps @ FACE_SHAPE.mean(axis=0)
    local = points - origin[:, None]
    size = np.array([item.scale for item in faces])
    weights = confidence / size[:, None] ** 2
    normal = np.einsum("np,nij,nik->pjk", weights, maps, maps)
    shape = np.linalg.solve(normal, np.einsum("np,nij,npi->pj", weights, maps, local)[:, :, None])[:, :, 0]
    return np.asarray((shape + shape[list(WFLW_98.mirror)] * (-1, 1, 1)) / 2)


def _confidence(face: Face) -> NDArray[np.float32]:
    confidence = np.ones(98, np.float32) if face.point_weights is None else face.point_weights
    return np.asarray(confidence * face.weight, np.float32)


def turned(
    picture: NDArray[np.uint8], points: Array, pose: Array, scale: float, shape: Array, angles: tuple[float, float]
) -> tuple[NDArray[np.uint8], Array, NDArray[np.bool_]] | None:
    """Rotate the face in the middle of a picture ``(S, S, 3)`` with points ``(98, 2)`` by yaw and pitch in degrees.

    `pose` ``(3, 3)`` is from head to camera, `scale` pixels a millimetre, `shape` from `mean_shape`. Gives the new
    picture, its points, and which were moved to the outline; None where the mesh leaves the picture.
    """
    size = len(picture)
    rotated = shape @ pose.T * scale
    origin = points[list(RIGID_POINTS)].mean(axis=0) - rotated[list(RIGID_POINTS), :2].mean(axis=0)
    front = np.concatenate([points, rotated[:, 2:]], axis=1)
    forehead = FOREHEAD @ pose.T * scale
    forehead[:, :2] += origin
    spin = cv2.Rodrigues(pose[:, 1] * np.radians(angles[0]))[0] @ cv2.Rodrigues(pose[:, 0] * np.radians(angles[1]))[0]
    head = np.concatenate([front, forehead])
    middle = head[:98].mean(axis=0)
    moved = (head - middle) @ spin.T + middle
    ring = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    border = size / 2 + 0.499 * size * np.stack([np.cos(ring), np.sin(ring)], 1) / np.maximum(
        np.abs(np.cos(ring)), np.abs(np.sin(ring))
    ).reshape(-1, 1)
    source = np.concatenate([head[:, :2], border])
    target = np.concatenate([moved[:, :2], border])
    depth = np.concatenate([moved[:, 2], np.full(len(border), moved[:, 2].max() + 50 * scale)])
    if not ((source > 0) & (source < size)).all() or not ((target > 0) & (target < size)).all():
        return None
    final = moved[:98, :2].copy()
    hidden = to_outline(final, pose, spin)
    return painted(picture, source, target, depth), final, hidden


def painted(picture: NDArray[np.uint8], source: Array, target: Array, depth: Array) -> NDArray[np.uint8]:
    """Draw the mesh's triangles at their new places, the farthest first."""
    size = len(picture)
    triangles = Delaunay(source).simplices
    clockwise = np.linalg.det(source[triangles[:, 1:]] - source[triangles[:, :1]]) < 0
    triangles[clockwise] = triangles[clockwise, ::-1]
    corners = target[triangles]
    sides = corners[:, 1:] - corners[:, :1]
    facing = (sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0]) > 0.5
    order = np.argsort(-depth[triangles].mean(axis=1))
    index = np.full((size, size), -1, np.int32)
    for i in order[facing[order]].tolist():
        cv2.fillConvexPoly(index, np.round(corners[i] * 16).astype(np.int32), i, shift=4)
    inverse = np.zeros((len(triangles), 3, 2))
    flat = np.concatenate([corners[facing], np.ones((int(facing.sum()), 3, 1))], axis=2)
    inverse[facing] = np.linalg.solve(flat, source[triangles[facing]])
    ys, xs = np.mgrid[:size, :size]
    places = np.stack([xs, ys, np.ones_like(xs)], axis=2).astype(float)
    mapped = np.einsum("yxk,yxkc->yxc", places, inverse[index])
    # A slit between triangles keeps the old pixel.
    mapped = np.where((index < 0)[:, :, None], places[:, :, :2], mapped).astype(np.float32)
    return cv2.remap(picture, mapped[:, :, 0], mapped[:, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def to_outline(points: Array, pose: Array, spin: Array) -> NDArray[np.bool_]:
    """Move contour points that ended behind the face to its outline, in place; give which, ``(98,)``."""
    rest = points[33:]
    hull = cv2.convexHull(rest.astype(np.float32))
    sideways = (spin @ pose)[:2, 0]
    sideways = sideways / max(float(np.linalg.norm(sideways)), 1e-6)
    hidden = np.zeros(98, bool)
    for i in CONTOUR.tolist():
        outward = -sideways if i < 16 else sideways
        if i == 16 or cv2.pointPolygonTest(hull, tuple(points[i].tolist()), measureDist=False) <= 0:
            continue
        while cv2.pointPolygonTest(hull, tuple(points[i].tolist()), measureDist=False) > 0:
            points[i] += outward
        hidden[i] = True
    return hidden


def turn_one(task: tuple[Solved, Path, int], shape: Array) -> list[str] | None:
    """Rotate one face and write its picture; its line of the CSV."""
    item, target, seed = task
    landmarks = item.face.landmarks
    photo = cv2.imread(str(item.face.image))
    if landmarks is None or photo is None:
        return None
    rng = np.random.default_rng(seed)
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    side = int(float((high - low).max()) * ROOM)
    corner = np.round((low + high) / 2 - side / 2).astype(np.int64)
    picture = crop_faces(np.asarray(photo, np.uint8), CropWindows(corner[None], np.array([side])), SIDE)[0]
    points = ((landmarks - corner + 0.5) * (SIDE / side) - 0.5).astype(np.float64)
    yaw = float(np.degrees(np.arcsin(np.clip(item.rotation[0, 2], -1, 1))))
    sign = np.sign(yaw) if abs(yaw) > 5 else rng.choice([-1.0, 1.0])
    wanted = sign * rng.uniform(25, LARGEST_YAW)
    if abs(wanted) < abs(yaw) + 10:
        return None
    found = turned(
        picture, points, item.rotation, item.scale * SIDE / side, shape, (wanted - yaw, float(rng.normal(0, 8)))
    )
    if found is None:
        return None
    image, final, hidden = found
    cv2.imwrite(str(target), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    confidence = _confidence(item.face) * np.where(hidden, 0.5, 1.0)
    return label_row(f"images/{target.name}", final.astype(np.float32), confidence.astype(np.float32))


def main() -> None:
    """Rotate faces of every source."""
    labels, images, out = (Path(argument) for argument in sys.argv[1:4])
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    (out / "images").mkdir(parents=True, exist_ok=True)
    everyone: list[Solved] = []
    tasks: list[tuple[Solved, Path, int]] = []
    rng = np.random.default_rng(seed)
    for name, (share, group_by) in SOURCES.items():
        faces = read_points_csv(labels / name, images, group_by)
        held_out = split_groups([face.group for face in faces], VALIDATION, SPLIT_SEED)
        items = solved([face for face, out in zip(faces, held_out, strict=True) if not out])
        everyone += items
        for number, item in enumerate(items):
            for copy in range(int(share + rng.random())):
                stem = f"{item.face.image.stem}-{number}-{copy}"
                tasks.append((item, out / "images" / f"{stem}.jpg", seed * 1_000_003 + len(tasks)))
    shape = mean_shape(everyone)
    with ProcessPoolExecutor(2, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        found = pool.map(partial(turn_one, shape=shape), tasks, chunksize=32)
        rows = track(found, description="rotating", total=len(tasks))
        write_labels(out / "turned.csv", (row for row in rows if row is not None))


if __name__ == "__main__":
    main()
