"""Photographs with face boxes for `face_detector.py`: readers, labels by SCRFD, augmented samples.

Boxes are ``x0 y0 x1 y1`` in pixels. Points are left eye, right eye, mouth centre of the upright face (left as the image
shows it), NaN where unknown. A face is either a positive or ignored: cells inside an ignored box are neither face nor
background.
"""

import csv
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pfld_edge_calib import read_photo
from pfld_edge_calib.files import replacing
from pfld_edge_calib.find_landmarks import overlaps
from pfld_edge_runtime.arrays import BoolArray, Float32Array, Float64Array, Uint8Array
from pfld_edge_runtime.detection.onnx_detector import non_maximum_suppression
from pfld_edge_runtime.session import open_session

HELD_OUT = 250
_MATCH, _UNLABELLED, _CONFIDENT = 0.4, 0.3, 0.5
_POINTS_SCORE = 0.3
LEAST_SIZE = 7.0


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph or training sample ``(H, W, 3)`` BGR uint8 with its faces.

    They have ``boxes (N, 4)`` and ``points (N, 3, 2)``; ``ignored (N,)`` tells which are neither face nor background.
    """

    image: Uint8Array
    boxes: Float32Array
    points: Float32Array
    ignored: BoolArray


@dataclass(frozen=True, slots=True)
class Teacher:
    """What SCRFD found in one photograph: `label_photos`."""

    boxes: Float32Array
    scores: Float32Array
    points: Float32Array


class Scrfd:
    """SCRFD with points (Guo et al., ICLR 2022), whose input is 640 px wide and high."""

    def __init__(self, path: Path, threshold: float = 0.2) -> None:
        self._session = open_session(path)
        self._threshold = threshold

    def __call__(self, image: Uint8Array) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Boxes ``(N, 4)``, scores ``(N,)`` and points ``(N, 5, 2)`` in pixels of a BGR photograph."""
        scale = 640 / max(image.shape[:2])
        method = cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=method)
        canvas = np.zeros((640, 640, 3), np.float32)
        canvas[: small.shape[0], : small.shape[1]] = small[:640, :640]
        blob = np.ascontiguousarray(((canvas[..., ::-1] - 127.5) / 128).transpose(2, 0, 1)[None], np.float32)
        outputs = self._session.run(None, {self._session.get_inputs()[0].name: blob})
        columns = [np.asarray(found).reshape(-1, np.shape(found)[-1]) for found in outputs]
        of_kind = {n: sorted((o for o in columns if o.shape[1] == n), key=len, reverse=True) for n in (1, 4, 10)}
        boxes, scores, points = [], [], []
        for stride, score, edges, marks in zip((8, 16, 32), of_kind[1], of_kind[4], of_kind[10], strict=True):
            side = 640 // stride
            grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
            chosen = score[:, 0] > self._threshold
            center = np.repeat(grid, len(score) // side**2, axis=0)[chosen]
            boxes.append(np.concatenate([center - edges[chosen, :2], center + edges[chosen, 2:]], 1) * stride)
            scores.append(score[chosen, 0])
            points.append((center[:, None] + marks[chosen].reshape(-1, 5, 2)) * stride)
        box, found, mark = (np.concatenate(part).astype(np.float32) for part in (boxes, scores, points))
        kept = non_maximum_suppression(box, found, 0.45)
        return box[kept] / scale, found[kept], mark[kept] / scale


def label_photos(detector: Path, photos: Iterable[Path], out: Path) -> int:
    """Write SCRFD's faces as arrays with a row each, and ``photo``, all photographs; the number of faces."""
    find, looked = Scrfd(detector), []
    rows: dict[str, list[object]] = {"image": [], "box": [], "score": [], "points": []}
    for path in photos:
        looked.append(str(path))
        for box, score, points in zip(*find(read_photo(path)), strict=True):
            for name, value in zip(rows, (str(path), box, score, points), strict=True):
                rows[name].append(value)
    with replacing(out) as file:
        np.savez(file, photo=looked, **{name: np.array(values) for name, values in rows.items()})  # type: ignore[arg-type]
    return len(rows["image"])


def read_teacher(path: Path) -> dict[str, Teacher]:
    """Read the file of `label_photos` by photograph; every photograph that was looked at has an entry."""
    with np.load(path) as file:
        rows: dict[str, list[int]] = defaultdict(list)
        images, photos = file["image"], file["photo"]
        boxes, scores, points = (file[name].astype(np.float32) for name in ("box", "score", "points"))
    for index, name in enumerate(images):
        rows[str(name)].append(index)
    eyes_mouth = np.stack([points[:, 0], points[:, 1], points[:, 3:5].mean(1)], 1)
    return {str(p): Teacher(boxes[rows[str(p)]], scores[rows[str(p)]], eyes_mouth[rows[str(p)]]) for p in photos}


def held_out_names(names: Sequence[str]) -> set[str]:
    """The photographs kept for selection: the `HELD_OUT` smallest checksums of the names."""
    return set(sorted(set(names), key=lambda name: zlib.crc32(name.encode()))[:HELD_OUT])


def read_wider(folder: Path, teacher: dict[str, Teacher] | None, held_out: bool) -> list[Photo]:
    """WIDER FACE with true boxes, the held-out photographs or the others.

    The teacher adds points, and ignored boxes where it sees an unlabelled face.
    """
    faces: dict[str, list[list[float]]] = defaultdict(list)
    with (folder / "boxes.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            faces[row["image"]].append([float(row[k]) for k in ("x0", "y0", "x1", "y1", "invalid")])
    photos = []
    kept = held_out_names(list(faces))
    for name, rows in sorted(faces.items()):
        if (name in kept) is not held_out:
            continue
        path = folder / "images" / name
        image = read_photo(path)
        values = np.array(rows, np.float32)
        boxes = values[:, :4]
        # Rounding left a few boxes without area.
        ignored = (values[:, 4] > 0) | (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
        points = np.full((len(boxes), 3, 2), np.nan, np.float32)
        if teacher is not None:
            boxes, points, ignored = _second_opinion(boxes, points, ignored, teacher[str(path)])
        photos.append(Photo(image, boxes, points, ignored))
    return photos


def read_pseudo_labelled(teacher: dict[str, Teacher], largest_side: int) -> list[Photo]:
    """Photographs labelled by the teacher alone; those without a confident face are left out."""
    photos = []
    for path, found in teacher.items():
        if not (found.scores > _CONFIDENT).any():
            continue
        image = read_photo(Path(path))
        scale = min(1.0, largest_side / max(image.shape[:2]))
        if scale < 1.0:
            image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
        ignored = found.scores <= _CONFIDENT
        photos.append(Photo(image, found.boxes * scale, found.points * scale, ignored))
    return photos


def _second_opinion(
    boxes: Float32Array, points: Float32Array, ignored: BoolArray, teacher: Teacher
) -> tuple[Float32Array, Float32Array, BoolArray]:
    if not len(teacher.boxes):
        return boxes, points, ignored
    iou = overlaps(boxes[:, None], teacher.boxes)
    best = iou.argmax(1)
    known = (iou.max(1) > _MATCH) & (teacher.scores[best] > _POINTS_SCORE)
    points[known] = teacher.points[best[known]]
    missed = (iou.max(0) < _MATCH) & (teacher.scores > _UNLABELLED)
    return (
        np.concatenate([boxes, teacher.boxes[missed]]),
        np.concatenate([points, teacher.points[missed]]),
        np.concatenate([ignored, np.ones(int(missed.sum()), bool)]),
    )


class Augmenter:
    """Draws training samples from groups of photographs.

    Args:
        groups: Photographs and the probability with which a photograph comes from that group.
        side: Side of a sample in pixels.
        side_in_use: Longer side of a photograph as the finished detector sees it: samples are windows of that, which
            wastes less on the empty bands of a letterbox.
        rng: Source of randomness.
    """

    def __init__(
        self, groups: Sequence[tuple[Sequence[Photo], float]], side: int, side_in_use: int, rng: np.random.Generator
    ) -> None:
        self._groups = [photos for photos, _ in groups]
        total = sum(share for _, share in groups)
        self._shares = [share / total for _, share in groups]
        self._side, self._side_in_use, self._rng = side, side_in_use, rng

    def draw(self) -> Photo:
        """One sample: a single photograph (60 %) or a mosaic of four."""
        canvas = np.zeros((self._side, self._side, 3), np.uint8)
        if self._rng.random() < 0.1:
            canvas[:] = self._rng.integers(0, 256, 3)
        if self._rng.random() < 0.6:
            parts = [self._place(canvas, (0, 0, self._side, self._side), mosaic=False)]
        else:
            x, y = (int(self._side * self._rng.uniform(0.35, 0.65)) for _ in range(2))
            ends = ((0, 0, x, y), (x, 0, self._side, y), (0, y, x, self._side), (x, y, self._side, self._side))
            parts = [self._place(canvas, region, mosaic=True) for region in ends]
        boxes, points, ignored = (np.concatenate([part[i] for part in parts]) for i in range(3))
        return Photo(_change_colours(canvas, self._rng), boxes, points, ignored)

    def _photo(self, mosaic: bool) -> Photo:
        # A whole sample from the first group (WIDER) more often: the others are mostly crops of one large face.
        first = not mosaic and self._rng.random() < 0.4
        group = 0 if first else int(self._rng.choice(len(self._groups), p=self._shares))
        photos = self._groups[group]
        return photos[int(self._rng.integers(len(photos)))]

    def _place(
        self, canvas: Uint8Array, region: tuple[int, int, int, int], mosaic: bool
    ) -> tuple[Float32Array, Float32Array, BoolArray]:
        """Warp a photograph into a region (x0, y0, x1, y1) of the canvas; its faces in canvas pixels."""
        photo = self._photo(mosaic)
        angle, mirrored = _angle(self._rng), self._rng.random() < 0.5
        scale = self._scale(photo, mosaic)
        matrix = self._matrix(photo, region, scale, angle, mirrored)
        image = photo.image
        if scale < 0.7 and self._rng.random() < 0.5:
            # Half the shrunk photographs are smoothed first; the rest alias, as the runtime's letterbox does.
            image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
            shrunk = np.array([photo.image.shape[1] / image.shape[1], photo.image.shape[0] / image.shape[0], 1.0])
            drawn = matrix * shrunk
        else:
            drawn = matrix
        x0, y0, x1, y1 = region
        inside = drawn - np.array([[0, 0, x0], [0, 0, y0]])
        # BORDER_TRANSPARENT leaves the canvas as it is beside the photograph.
        tile = np.ascontiguousarray(canvas[y0:y1, x0:x1])
        cv2.warpAffine(
            image, inside, (x1 - x0, y1 - y0), dst=tile, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT
        )
        canvas[y0:y1, x0:x1] = tile
        return _moved_faces(photo, matrix, region, mirrored)

    def _scale(self, photo: Photo, mosaic: bool) -> float:
        """Zoom: as in use (35 %), jittered (30 %), or such that one face gets a size drawn log-uniformly (35 %).

        Only mosaics shrink photographs far below their size in use: alone, they would leave the sample empty.
        """
        fit = self._side_in_use / max(photo.image.shape[:2])
        least = (0.4 if mosaic else 0.8) * fit
        kind = self._rng.random()
        if kind < 0.35:
            return float(fit * self._rng.uniform(0.9, 1.1))
        jitter = float(np.exp(self._rng.uniform(np.log(least), np.log((1.1 if mosaic else 2.2) * fit))))
        faces = photo.boxes[~photo.ignored]
        if kind < 0.65 or not len(faces):
            return jitter
        box = faces[int(self._rng.integers(len(faces)))]
        size = max(4.0, float(np.sqrt(np.prod(box[2:] - box[:2]))))
        wanted = float(np.exp(self._rng.uniform(np.log(8.0), np.log(200.0))))
        return float(np.clip(wanted / size, least, 3.0 * max(fit, 1.0)))

    def _matrix(
        self, photo: Photo, region: tuple[int, int, int, int], scale: float, angle: float, mirrored: bool
    ) -> Float64Array:
        """Affine map (2, 3) from photograph to canvas pixels."""
        height, width = photo.image.shape[:2]
        x0, y0, x1, y1 = region
        cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
        linear = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
        turned = np.abs(linear) @ np.array([width, height], float)
        room = np.array([x1 - x0, y1 - y0], float)
        focus, target = np.array([width, height]) / 2, np.array([x0 + x1, y0 + y1]) / 2
        faces = photo.boxes[~photo.ignored]
        if len(faces) and (turned > room * 1.1).any() and self._rng.random() < 0.7:
            box = faces[int(self._rng.integers(len(faces)))]
            focus = (box[:2] + box[2:]).astype(float) / 2
            target = target + room * self._rng.uniform(-0.42, 0.42, 2)
        else:
            target = target + np.abs(room - turned) / 2 * self._rng.uniform(-1, 1, 2)
        # The photograph's middle stays where the photograph fills the region, or lies inside it.
        middle = target + linear @ (np.array([width, height]) / 2 - focus)
        center, slack = np.array([x0 + x1, y0 + y1]) / 2, np.abs(room - turned) / 2
        shift = middle.clip(center - slack, center + slack) - linear @ np.array([width, height]) / 2
        return np.concatenate([linear, shift[:, None]], 1)


def _angle(rng: np.random.Generator) -> float:
    """Roll in radians: nearly upright (75 %), up to 45 degrees (13 %), on the side, upside down, or any."""
    kind = rng.random()
    if kind < 0.4:
        degrees = 0.0
    elif kind < 0.75:
        degrees = rng.normal(0, 8)
    elif kind < 0.88:
        degrees = rng.uniform(-45, 45)
    elif kind < 0.94:
        degrees = rng.choice([-90, 90]) + rng.normal(0, 8)
    elif kind < 0.96:
        degrees = 180 + rng.normal(0, 8)
    else:
        degrees = rng.uniform(-180, 180)
    return float(np.deg2rad(degrees))


def _moved_faces(
    photo: Photo, matrix: Float64Array, region: tuple[int, int, int, int], mirrored: bool
) -> tuple[Float32Array, Float32Array, BoolArray]:
    linear, shift = matrix[:, :2], matrix[:, 2]
    centers = (photo.boxes[:, :2] + photo.boxes[:, 2:]) / 2 @ linear.T + shift
    # A face is an ellipse rather than a rectangle: the box of the turned ellipse stays tight at any angle.
    half_axes = (photo.boxes[:, 2:] - photo.boxes[:, :2]) / 2
    half = np.sqrt((half_axes[:, None] ** 2 * linear[None] ** 2).sum(-1))
    boxes = np.concatenate([centers - half, centers + half], 1)
    points = photo.points @ linear.T + shift
    if mirrored:
        points = points[:, [1, 0, 2]]
    low, high = np.array(region[:2] * 2), np.array(region[2:] * 2)
    clipped = boxes.clip(low, high)
    full, seen = (np.prod((b[:, 2:] - b[:, :2]).clip(1e-3), 1) for b in (boxes, clipped))
    share = seen / full
    kept = share > 0.1
    size = np.sqrt(seen)
    ignored = photo.ignored | (share < 0.5) | (size < LEAST_SIZE)
    return (clipped[kept].astype(np.float32), points[kept].astype(np.float32), ignored[kept])


def _change_colours(image: Uint8Array, rng: np.random.Generator) -> Uint8Array:
    """Brightness, contrast, gamma and tint by a table; at times grey, blur, sharpening, noise, JPEG."""
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    if rng.random() < 0.8:
        levels = levels ** np.exp(rng.normal(0, 0.25))
        levels = (levels - 0.5) * np.exp(rng.normal(0, 0.2)) + 0.5 + rng.normal(0, 0.08)
        levels = levels * np.exp(rng.normal(0, 0.06, 3))
        table = (levels.clip(0, 1) * 255).astype(np.uint8).reshape(1, 256, 3)
        image = np.asarray(cv2.LUT(image, table), np.uint8)
    if rng.random() < 0.08:
        image = np.repeat(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)[..., None], 3, 2)
    kind = rng.random()
    if kind < 0.08:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.3)), np.uint8)
    elif kind < 0.2:
        smooth = cv2.GaussianBlur(image, (0, 0), 1.0)
        image = np.asarray(cv2.addWeighted(image, 1.8, smooth, -0.8, 0), np.uint8)
    elif kind < 0.28:
        noise = rng.integers(-12, 13, image.shape, dtype=np.int16)
        image = (image + noise).clip(0, 255).astype(np.uint8)
    elif kind < 0.36:
        _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 80))])
        image = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)
    return image
