"""Labels faces with H3R and the three published PFLD networks, and packs their crops for training.

    python dense/label_faces.py SHARED OUT [SOURCE ...]

The teacher: 0.6 x H3R (mirror image, margins 1.5 and 1.8) + 0.4 x the mean of the three references (mirror image,
margin 1.2), all on the box of a first pass of GhostOne. With VIEWS = 1 each face gets one of those views of each
network, drawn at random: the mean over faces is the same, at a quarter of the time. Disagreement is the weighted
standard deviation of all answers as a share of the face's size. Faces with true 68 points take them as box, and
`pack_faces.py` corrects the label.

Writes OUT/parts/SOURCE-NNNN.npz, 64 photographs each, the sources in turns; parts that exist are left, so the command
resumes.
"""

import csv
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pfld_edge_runtime import WFLW_98, Contract, CropWindows, FaceLandmarker, crop_faces, crop_windows
from pfld_edge_runtime.detectors import SCRFD, YuNet, find_boxes
from pfld_edge_runtime.detectors.nms import non_maximum_suppression

Array = NDArray[np.float32]
MIRROR = np.array(WFLW_98.mirror)
PART = 64
VIEWS = 1
SMALLEST_FACE = 26
# Packed crops are wider than the network's (margin 1.2), so that turned, shifted and larger views find pixels.
SIDE, ROOM = 176, 1.8
SOURCES = ("wflw", "helen_afw", "aflw2000", "wider", "youtube68", "lfw")


class H3R:
    """The strongest teacher: a square of 1.5 times the tight box, 256 px BGR uint8."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, crops: NDArray[np.uint8]) -> Array:
        return np.concatenate(
            [self.session.run(None, {"crops": crops[i : i + 1]})[0] for i in range(len(crops))]
        ).astype(np.float32)


def mirrored(predict, crops: NDArray[np.uint8]) -> Array:
    """Ask about the mirror image, and map the answer back."""
    found = predict(np.ascontiguousarray(crops[:, :, ::-1]))[:, MIRROR]
    found[..., 0] = 1 - found[..., 0]
    return found


def tight_box(points: Array) -> Array:
    return np.concatenate([np.floor(points.min(0)), np.floor(points.max(0)) + 1])


def face_size(points: Array) -> Array:
    """Eye distance, or 0.35 of the box where the face looks to the side; ``(N,)``."""
    eyes = np.linalg.norm(points[:, 60] - points[:, 72], axis=1)
    return np.maximum(np.maximum(eyes, 0.35 * np.ptp(points, axis=1).max(1)), 1.0)


class Teacher:
    """All networks of one process."""

    def __init__(self, shared: Path) -> None:
        cv2.setNumThreads(1)
        self.h3r = H3R(shared / "models/teachers/h3r_wflw98_256.onnx")
        paths = sorted((shared / "models/reference").glob("*.onnx"))
        self.references = [FaceLandmarker(path, contract=Contract()).predict_crops for path in paths]
        self.first = self.references[-1]  # GhostNet, GhostNet-Slim, GhostOne
        self.random = np.random.default_rng(0)
        folder = shared / "models/detectors"
        self.detectors = [
            YuNet(folder / "yunet_n_dynamic.onnx", score_threshold=0.5),
            SCRFD(folder / "scrfd_2.5g_kps.onnx", score_threshold=0.4),
        ]

    def detect(self, image: NDArray[np.uint8]) -> Array:
        found = [find_boxes(detector, image, "bgr") for detector in self.detectors]
        boxes, scores = np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])
        return boxes[non_maximum_suppression(boxes, scores, 0.35)]

    def detect_single(self, image: NDArray[np.uint8]) -> Array:
        """The one face of a picture that it fills: detectors see it with a border; the middle where they don't."""
        height, width = image.shape[:2]
        pad = height // 2
        framed = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_CONSTANT)
        boxes = find_boxes(self.detectors[0], framed, "bgr")[0] - pad
        middle = np.array([0.22 * width, 0.22 * height, 0.78 * width, 0.78 * height])
        if len(boxes):
            off = np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - (width / 2, height / 2), axis=1)
            size = (boxes[:, 2:] - boxes[:, :2]).max(1)
            fit = np.where(size > 0.2 * width, off, np.inf)
            if np.isfinite(fit.min()):
                return boxes[[fit.argmin()]]
        return middle[None]

    def first_pass(self, image: NDArray[np.uint8], boxes: Array) -> Array:
        """The boxes of GhostOne's landmarks, looked at twice: detectors' boxes lie off by a fifth."""
        for _ in range(2):
            windows = crop_windows(boxes, 1.2)
            points = windows.to_image(self.first(crop_faces(image, windows, 112)))
            boxes = np.stack([tight_box(p) for p in points])
        return boxes

    def views(self, image: NDArray[np.uint8], boxes: Array) -> tuple[Array, Array]:
        """H3R's and the references' views, ``(V, N, 98, 2)`` photograph pixels each."""
        h3r, references = [], []
        looks = [(margin, flip) for margin in (1.5, 1.8) for flip in (False, True)]
        for margin, flip in looks if VIEWS > 1 else [looks[self.random.integers(4)]]:
            windows = crop_windows(boxes, margin)
            crops = crop_faces(image, windows, 256)
            h3r.append(windows.to_image(mirrored(self.h3r, crops) if flip else self.h3r(crops)))
        windows = crop_windows(boxes, 1.2)
        crops = crop_faces(image, windows, 112)
        for predict in self.references:
            for flip in (False, True) if VIEWS > 1 else [bool(self.random.integers(2))]:
                references.append(windows.to_image(mirrored(predict, crops) if flip else predict(crops)))
        return np.stack(h3r), np.stack(references)

    def label(self, image: NDArray[np.uint8], boxes: Array, true_box: bool) -> dict[str, Array]:
        """Label and pack N faces of a photograph; points are fractions of the packed crop."""
        if not true_box:
            boxes = self.first_pass(image, boxes)
        h3r, references = self.views(image, boxes)
        label = 0.6 * h3r.mean(0) + 0.4 * references.mean(0)
        size = face_size(label)
        square = 0.6 * ((h3r - label) ** 2).sum(3).mean(0) + 0.4 * ((references - label) ** 2).sum(3).mean(0)
        final = np.stack([tight_box(p) for p in label])
        windows = crop_windows(final, ROOM)
        return {
            "crops": crop_faces(image, windows, SIDE),
            "points": windows.to_crop(label.astype(np.float32)),
            "h3r": windows.to_crop(h3r.mean(0)),
            "references": windows.to_crop(references.mean(0)),
            "disagreement": (np.sqrt(square) / size[:, None]).astype(np.float32),
            "boxes": np.concatenate([final, boxes], 1).astype(np.float32),
            "corners": windows.corners,
            "sizes": windows.sizes,
        }


def points68(path: Path) -> dict[str, Array]:
    with path.open() as file:
        return {row[0]: np.array(row[1:137], np.float32).reshape(68, 2) for row in list(csv.reader(file))[1:]}


def tasks(shared: Path, source: str) -> Iterator[tuple[Path, str, object]]:
    """Photograph, group to split by, and what is known: None, "single", a box, or 68 true points."""
    data = shared / "data"
    if source == "wflw":
        for name in (data / "WFLW/unlabelled_images.txt").read_text().split():
            yield data / "WFLW/WFLW_images" / name, name, None
    elif source == "wider":
        with (data / "WIDER/faces.csv").open() as file:
            for row in csv.DictReader(file):
                box = np.array([float(row[k]) for k in ("x0", "y0", "x1", "y1")], np.float32)
                yield data / "WIDER/faces" / row["image"], row["image"].rsplit("_", 1)[0], box
    elif source == "helen_afw":
        for name, points in points68(data / "helen_afw/points.csv").items():
            yield data / "helen_afw/images" / name, name, points
    elif source == "youtube68":
        for part in ("train", "test"):
            for name, points in points68(data / f"youtube68/{part}.csv").items():
                yield data / "youtube68/images" / name, name.rsplit("_", 1)[0], points
    else:
        for path in sorted((data / source / "images").glob("*.jpg")):
            yield path, path.stem.rsplit("_", 1)[0] if source == "lfw" else path.stem, "single"


_teacher: Teacher | None = None


def start(shared: Path) -> None:
    global _teacher
    _teacher = Teacher(shared)


def label_part(task: tuple[Path, str, list[tuple[Path, str, object]]]) -> tuple[str, int]:
    """Label one part and write it."""
    target, source, photos = task
    if target.exists():
        return target.name, 0
    assert _teacher is not None
    rows: list[dict[str, Array]] = []
    groups, true = [], []
    for path, group, known in photos:
        image = cv2.imread(str(path))
        if image is None:
            continue
        points = known if isinstance(known, np.ndarray) and known.shape == (68, 2) else None
        if points is not None:
            boxes = tight_box(points)[None]
        elif isinstance(known, np.ndarray):
            boxes = known[None]
        else:
            boxes = _teacher.detect(image) if known is None else _teacher.detect_single(image)
        boxes = boxes[(boxes[:, 2] - boxes[:, 0]) >= SMALLEST_FACE]
        if not len(boxes):
            continue
        found = _teacher.label(image, boxes, points is not None)
        windows = CropWindows(found.pop("corners"), found.pop("sizes"))
        rows.append(found)
        groups += [f"{source}/{group}"] * len(boxes)
        true += [windows.to_crop(points[None])[0] if points is not None else np.full((68, 2), np.nan)] * len(boxes)
    merged = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    partial = target.with_suffix(".partial.npz")
    np.savez(partial, groups=np.array(groups), true68=np.array(true, np.float32), **merged)
    partial.rename(target)
    return target.name, len(groups)


def main() -> None:
    shared, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    (out / "parts").mkdir(parents=True, exist_ok=True)
    began, total = time.time(), 0
    work = []
    for source in sys.argv[3:] or SOURCES:
        photos = list(tasks(shared, source))
        for number, i in enumerate(range(0, len(photos), PART)):
            target = out / "parts" / f"{source}-{number:04d}.npz"
            work.append((i / len(photos), (target, source, photos[i : i + PART])))
    work = [task for _, task in sorted(work, key=lambda item: item[0])]
    with ProcessPoolExecutor(2, initializer=start, initargs=(shared,)) as pool:
        for done, (name, count) in enumerate(pool.map(label_part, work), 1):
            total += count
            print(f"{time.time() - began:6.0f} s  {done}/{len(work)}  {name}  {total} faces", flush=True)


if __name__ == "__main__":
    main()
