"""Pseudo-labels faces with H3R and the published PFLD networks, for the bundled models' recipes.

    python train/recipes/pseudo_label.py SHARED OUT

SHARED holds data/ (WFLW, helen_afw, aflw2000, WIDER, youtube68, lfw) and models/ (reference, teachers, detectors).
Writes OUT/SOURCE.csv for each source: image, weight, x0, y0, ... x97, y97 (pixels), c0 ... c97; images are relative to
the link OUT/photos. It resumes behind the last block of photographs.

The label is 0.6 times the mean of H3R's predictions (Yu and Tao, arXiv 2009.00225; margins of 1.5 and 1.8) plus 0.4
times that of the three PFLD networks', each also on the mirror image, in a second pass on the box of the first one. On
577 labelled WFLW test faces its NME is 0.0452, that of GhostOne 0.0550. True 68 points correct it: their distance from
the label, without the median over faces, which is a difference of definition, moves the 68 points, and their neighbours
with them. A point's confidence c falls with the networks' disagreement, which is high for hidden points in large pose.
Boxes in which the networks disagree altogether, or whose label lies elsewhere, are left out.
"""

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from rich.progress import track

from pfld_edge_calib.datasets.points_csv import points_row, write_points_csv
from pfld_edge_calib.face import Face
from pfld_edge_calib.files import replacing
from pfld_edge_calib.find_landmarks import overlaps
from pfld_edge_calib.labelling.labeller import TYPICAL_ERROR, face_sizes
from pfld_edge_calib.parallel import ordered_results
from pfld_edge_runtime import WFLW_98, Contract, FaceLandmarker, LandmarkModel, predict_with_mirror, tight_box
from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_runtime.contract import CropRule
from pfld_edge_runtime.detection.architectures import SCRFD, YuNet
from pfld_edge_runtime.detection.detector import find_boxes
from pfld_edge_runtime.detection.onnx_detector import non_maximum_suppression
from pfld_edge_runtime.geometry.wflw_points import NEAREST_68
from pfld_edge_runtime.session import open_session

Known = Float32Array | Literal["single"] | None
"""What is known of a photograph's faces: a box ``(4,)``, true points ``(68, 2)``, that one face fills it, nothing."""

H3R_SHARE = 0.6
BLOCK = 64
"""Photographs that are labelled between two files."""
SMALLEST_FACE = 26
SAME_FACE = 0.35
WORST_DISAGREEMENT, LEAST_OVERLAP = 0.15, 0.45
"""Of faces that are kept: largest median disagreement, and least intersection over union of label and box."""
TRUE_SHARE = np.repeat([0.3, 0.4, 0.6, 0.8, 0.7], [17, 10, 9, 12, 20])
"""How far the true points count against the label: contours slide along the face, eyes and lips don't."""
BETWEEN = {
    **{i: (i - 1, i + 1) for i in range(1, 33, 2)},
    38: (37, 36),
    39: (36, 35),
    40: (35, 34),
    41: (34, 33),
    47: (42, 43),
    48: (43, 44),
    49: (44, 45),
    50: (45, 46),
    62: (61, 63),
    66: (65, 67),
    70: (69, 71),
    74: (73, 75),
    96: NEAREST_68[36:42],
    97: NEAREST_68[42:48],
}
"""The other 30 points, and those whose mean correction each takes."""


class Teacher:
    """The networks and detectors of one process."""

    def __init__(self, shared: Path) -> None:
        cv2.setNumThreads(1)
        paths = sorted((shared / "models/reference").glob("*.onnx"))
        self.references = [FaceLandmarker(path, contract=Contract()) for path in paths]
        h3r = open_session(shared / "models/teachers/h3r_wflw98_256.onnx")
        self.h3r = [
            FaceLandmarker(
                LandmarkModel(
                    Contract(model="h3r", input_size=256, crop=CropRule(margin=margin)),
                    lambda crops: h3r.run(None, {"crops": crops})[0],
                    batch_size=1,
                )
            )
            for margin in (1.5, 1.8)
        ]
        folder = shared / "models/detectors"
        self.detectors = [
            YuNet(folder / "yunet_n_dynamic.onnx", score_threshold=0.5),
            SCRFD(folder / "scrfd_2.5g_kps.onnx", score_threshold=0.4),
        ]

    def boxes(self, image: Uint8Array, known: Known) -> Float32Array:
        """Boxes of a photograph's faces, ``(N, 4)`` pixels: those of either detector, or what is known."""
        if isinstance(known, np.ndarray):
            return (known if known.ndim == 1 else tight_box(known))[None].astype(np.float32)
        if known == "single":
            return self._single(image)[None]
        found = [find_boxes(detector, image, "bgr") for detector in self.detectors]
        boxes, scores = np.concatenate([boxes for boxes, _ in found]), np.concatenate([scores for _, scores in found])
        return boxes[non_maximum_suppression(boxes, scores, SAME_FACE)].astype(np.float32)

    def _single(self, image: Uint8Array) -> Float32Array:
        """The one face that fills a picture, ``(4,)``: detectors need a border; its middle where they see none."""
        pad, size = len(image) // 2, np.array(image.shape[1::-1], np.float32)
        framed = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_CONSTANT)
        boxes = find_boxes(self.detectors[0], np.asarray(framed, np.uint8), "bgr")[0] - pad
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).max(axis=1) > 0.2 * size[0]]
        if not len(boxes):
            return np.concatenate([0.22 * size, 0.78 * size])
        off = np.linalg.norm((boxes[:, :2] + boxes[:, 2:] - size) / 2, axis=1)
        return np.asarray(boxes[off.argmin()], np.float32)

    def __call__(
        self, image: Uint8Array, boxes: Float32Array, *, true_boxes: bool = False
    ) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Label ``(N, 4)`` faces: landmarks ``(N, 98, 2)`` pixels, disagreement ``(N, 98)``, overlap ``(N,)``.

        The disagreement is the weighted standard deviation of all predictions, as a share of the face's size.
        """
        for _ in range(0 if true_boxes else 2):  # detectors' boxes lie off by a fifth
            boxes = tight_box(self.references[-1](image, boxes, "bgr")).astype(np.float32)
        h3r, references = (
            np.concatenate([predict_with_mirror(network, image, boxes, "bgr") for network in networks])
            for networks in (self.h3r, self.references)
        )
        label = H3R_SHARE * h3r.mean(0) + (1 - H3R_SHARE) * references.mean(0)
        parts = ((H3R_SHARE, h3r), (1 - H3R_SHARE, references))
        variance = sum(share * np.square(views - label).sum(3).mean(0) for share, views in parts)
        disagreement = np.sqrt(variance) / face_sizes(label, WFLW_98)[:, None]
        return (
            label.astype(np.float32),
            disagreement.astype(np.float32),
            overlaps(tight_box(label), boxes).astype(np.float32),
        )


def corrected(points: Float32Array, true68: Float32Array) -> Float32Array:
    """Move labels ``(N, 98, 2)`` towards true points ``(N, 68, 2)``, see the module; both in pixels."""
    size = face_sizes(points, WFLW_98)[:, None, None]
    eyes = points[:, 72] - points[:, 60]
    eyes = eyes / np.linalg.norm(eyes, axis=1, keepdims=True)
    # Columns: the face's own axes.
    axes = np.stack([eyes, np.stack([-eyes[:, 1], eyes[:, 0]], 1)], 2)
    offset = (true68 - points[:, NEAREST_68]) / size @ axes
    usable = np.abs(offset).max((1, 2)) < 0.5  # where label and annotator speak of one face
    offset = (offset - np.median(offset[usable], 0)) * TRUE_SHARE[:, None] if usable.any() else offset
    moved = np.zeros_like(points)
    moved[:, NEAREST_68] = offset @ axes.transpose(0, 2, 1) * size
    for point, others in BETWEEN.items():
        moved[:, point] = moved[:, others].mean(1)
    return np.where(usable[:, None, None], points + moved, points)


def photographs(shared: Path) -> Iterator[tuple[str, list[tuple[str, Known]]]]:
    """Each source's name, and its photographs, relative to SHARED/data, with what is known of each."""
    data = shared / "data"
    names = (data / "WFLW/unlabelled_images.txt").read_text().split("\n")
    yield "wflw", [(f"WFLW/WFLW_images/{name}", None) for name in names if name]
    # youtube68/test.csv is left for benchmarks/confidence.py.
    for source, listed in (("helen_afw", "points.csv"), ("youtube68", "train.csv")):
        rows = _rows(data / source / listed)
        yield source, [(f"{source}/images/{row[0]}", np.array(row[1:137], np.float32).reshape(68, 2)) for row in rows]
    rows = _rows(data / "WIDER/faces.csv")
    yield "wider", [(f"WIDER/faces/{row[0]}", np.array(row[1:5], np.float32)) for row in rows]
    for source in ("aflw2000", "lfw"):
        yield source, [(str(p.relative_to(data)), "single") for p in sorted((data / source / "images").glob("*.jpg"))]


def _rows(path: Path) -> list[list[str]]:
    with path.open() as file:
        return list(csv.reader(file))[1:]


def block_labeller(shared: Path) -> Callable[[tuple[Path, list[tuple[str, Known]]]], None]:
    """Load the networks, once in each process."""
    return partial(label_block, Teacher(shared), shared / "data")


def label_block(teacher: Teacher, data: Path, block: tuple[Path, list[tuple[str, Known]]]) -> None:
    """Label some photographs and write what was found, unless it is there already."""
    target, photos = block
    if target.exists():
        return
    names, found = [], []
    for name, known in photos:
        image = cv2.imread(str(data / name))
        boxes = np.zeros((0, 4), np.float32) if image is None else teacher.boxes(np.asarray(image, np.uint8), known)
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) >= SMALLEST_FACE]
        if image is None or not len(boxes):
            continue
        true = known if isinstance(known, np.ndarray) and known.ndim == 2 else np.full((68, 2), np.nan, np.float32)
        labels = teacher(np.asarray(image, np.uint8), boxes, true_boxes=bool(np.isfinite(true).all()))
        names += [name] * len(boxes)
        found.append((*labels, np.repeat(true[None], len(boxes), 0)))
    merged = [np.concatenate(arrays) for arrays in zip(*found, strict=True)]
    with replacing(target) as file:
        np.savez(file, *merged, names=np.array(names))


def source_rows(blocks: Sequence[Path]) -> Iterator[list[str]]:
    """Lines of a source's CSV: faces that the teachers agree on, corrected where true points are known."""
    loaded = [dict(np.load(path)) for path in blocks]
    points, disagreement, overlap, true68, names = (
        np.concatenate([part[key] for part in loaded if key in part])
        for key in ("arr_0", "arr_1", "arr_2", "arr_3", "names")
    )
    known = np.isfinite(true68).all((1, 2))
    if known.any():
        points[known] = corrected(points[known], true68[known])
    keep = (np.median(disagreement, 1) < WORST_DISAGREEMENT) & (overlap > LEAST_OVERLAP)
    confidence = TYPICAL_ERROR / np.hypot(TYPICAL_ERROR, disagreement)
    for i in np.flatnonzero(keep).tolist():
        yield points_row(str(names[i]), Face(Path(), np.zeros(4), points[i], point_weights=confidence[i]))


def main() -> None:
    """Label every source."""
    shared, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    (out / "blocks").mkdir(parents=True, exist_ok=True)
    if not (out / "photos").is_symlink():
        (out / "photos").symlink_to(shared / "data")  # what the image columns are relative to
    for name, photos in photographs(shared):
        if (out / f"{name}.csv").exists():
            continue
        starts = range(0, len(photos), BLOCK)
        tasks = [(out / "blocks" / f"{name}-{i // BLOCK:04d}.npz", photos[i : i + BLOCK]) for i in starts]
        done = ordered_results(partial(block_labeller, shared), tasks, 2)
        list(track(done, name, total=len(tasks)))
        write_points_csv(out / f"{name}.csv", 98, source_rows([block for block, _ in tasks]))


if __name__ == "__main__":
    main()
