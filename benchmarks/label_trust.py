"""Whether the trust that `pfld-edge label` writes ranks landmarks and faces by their true error.

    PFLD_EDGE_SHARED=<folder> python benchmarks/label_trust.py [TEACHER...]

Labels the 120 WFLW test faces, which serve for measuring only, with the given networks (the three published ONNX files
where none is given), from their true boxes and from YuNet's, and compares with their true landmarks. Rank correlations
are Spearman's. Nothing is chosen here: the constants come from unlabelled faces and from `train/recipes`.
"""

import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from pfld_edge_calib import Face, nme_per_face, read_photo, read_wflw
from pfld_edge_calib.labelling import Consensus, augmented_predictions, consensus
from pfld_edge_calib.labelling.consensus import face_sizes
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_runtime import WFLW_98, LandmarkModel
from pfld_edge_runtime.detection import YuNet, find_boxes
from pfld_edge_runtime.geometry.landmarks import tight_box

Array = NDArray[np.floating]
DOUBTFUL = 0.7


def labelled(
    faces: Sequence[Face],
    boxes: Sequence[Array],
    teachers: Sequence[LandmarkModel],
    flip: bool,
    crops: int,
    passes: int,
) -> Consensus:
    """Label every face from its box, as `Labeller` does."""
    looks = []
    for face, start in zip(faces, boxes, strict=True):
        photo, box = read_photo(face.image), np.asarray(start, np.float64)[None]
        for _ in range(passes - 1):
            box = tight_box(np.median(augmented_predictions(photo, box, teachers, flip=flip, crops=1), axis=0))
        looks.append(augmented_predictions(photo, box, teachers, flip=flip, crops=crops))
    return consensus(np.concatenate(looks, axis=1), WFLW_98)


def detected(faces: Sequence[Face], detector: Path) -> tuple[list[Face], list[Array]]:
    """Pair faces with the detector's boxes, those that it finds."""
    yunet = YuNet(detector, score_threshold=0.3)
    found: list[Face] = []
    places: list[Array] = []
    for face in faces:
        boxes, _ = find_boxes(yunet, read_photo(face.image), "bgr")
        overlaps = [overlap(face.bbox_xyxy, box) for box in boxes]
        if overlaps and max(overlaps) > 0.3:
            found.append(face)
            places.append(boxes[int(np.argmax(overlaps))])
    return found, places


def overlap(box: Array, other: Array) -> float:
    """Intersection over union."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / (float(np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2])) - shared)


def figures(found: Consensus, faces: Sequence[Face]) -> list[str]:
    """One row of the table."""
    truth = np.stack([face.landmarks for face in faces if face.landmarks is not None])
    nme = nme_per_face(found.landmarks, truth, WFLW_98.normalizing_points)
    errors = np.linalg.norm(found.landmarks - truth, axis=2) / face_sizes(truth, WFLW_98)[:, None]
    trust = found.weights[:, None] * found.point_weights
    inside = [spearmanr(spread, error).statistic for spread, error in zip(found.disagreement, errors, strict=True)]
    doubtful = found.weights < DOUBTFUL
    return [
        f"{nme.mean():.4f}",
        f"{(errors * trust).sum() / trust.sum():.4f} / {errors.mean():.4f}",
        f"{spearmanr(found.disagreement.ravel(), errors.ravel()).statistic:.3f}",
        f"{-spearmanr(trust.ravel(), errors.ravel()).statistic:.3f}",
        f"{np.mean(inside):.3f}",
        f"{spearmanr(found.face_disagreement, nme).statistic:.3f}",
        f"{-spearmanr(found.weights, nme).statistic:.3f}",
        f"{doubtful.mean():.0%}, {nme[doubtful].mean():.4f} / {nme[~doubtful].mean():.4f}",
    ]


def main() -> None:
    """Print the table."""
    shared = Path(os.environ["PFLD_EDGE_SHARED"])
    paths = [Path(name) for name in sys.argv[1:]] or sorted((shared / "models/reference").glob("*.onnx"))
    teachers = [open_landmark_model(path) for path in paths]
    faces = read_wflw(shared / "data/WFLW")
    sources = {
        "true": (faces, [face.bbox_xyxy for face in faces]),
        "YuNet": detected(faces, shared / "models/detectors/yunet_n_dynamic.onnx"),
    }
    table = Table(title=", ".join(teacher.name for teacher in teachers))
    for name in ("boxes", "teachers", "flip", "crops", "passes"):
        table.add_column(name)
    for name in ("NME", "error, by trust / plain", "landmarks: d", "trust", "in a face", "faces: D", "weight"):
        table.add_column(name, justify="right")
    table.add_column(f"weight < {DOUBTFUL}: share, NME / NME of the rest")
    for (boxes, (some, places)), (flip, crops, passes) in product(
        sources.items(), ((False, 1, 2), (True, 1, 1), (True, 1, 2), (True, 2, 2), (True, 4, 2))
    ):
        for chosen in (teachers, teachers[-1:]) if (flip, crops, passes) == (True, 2, 2) else (teachers,):
            if len(chosen) * crops * (1 + flip) > 1:
                found = labelled(some, places, chosen, flip, crops, passes)
                setting = (f"{boxes} ({len(some)})", str(len(chosen)), "yes" if flip else "no", str(crops), str(passes))
                table.add_row(*setting, *figures(found, some))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
