"""Whether the weights that `pfld-edge label` writes rank landmarks and faces by their true error.

    PFLD_EDGE_SHARED=<folder> python benchmarks/label_trust.py [TEACHER...]

Labels the 120 WFLW test faces, which serve for measuring only, with the given networks (the three published ONNX files
where none is given), from their true boxes and from YuNet's, and compares with their true landmarks. Rank correlations
are Spearman's. Nothing is chosen here: the constants come from unlabelled faces and from `train/recipes`.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from harness import SAME_FACE, overlaps, print_table, shared_folder
from pfld_edge_calib import Face, nme_per_face, read_photo, read_wflw
from pfld_edge_calib.labelling.labeller import Consensus, augmented_predictions, consensus, face_sizes
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_runtime import WFLW_98, LandmarkModel
from pfld_edge_runtime.detection import YuNet, find_boxes
from pfld_edge_runtime.geometry.landmarks import tight_box

Array = NDArray[np.floating]
DOUBTFUL = 0.7
SETTINGS = ((False, 1, 2), (True, 1, 1), (True, 1, 2), (True, 2, 2), (True, 4, 2))
"""Flip, crops, passes."""


def labelled(
    faces: Sequence[Face], boxes: Sequence[Array], teachers: Sequence[LandmarkModel], setting: tuple[bool, int, int]
) -> Consensus:
    """Label every face from its box, as `Labeller` does."""
    looks, (flip, crops, passes) = [], setting
    for face, start in zip(faces, boxes, strict=True):
        photo, box = read_photo(face.image), np.asarray(start, np.float64)[None]
        for _ in range(passes - 1):
            box = tight_box(np.median(augmented_predictions(photo, box, teachers, flip=flip, crops=1), axis=0))
        looks.append(augmented_predictions(photo, box, teachers, flip=flip, crops=crops))
    return consensus(np.concatenate(looks, axis=1), WFLW_98)


def detected(faces: Sequence[Face], detector: Path) -> tuple[list[Face], list[Array]]:
    """Pair the faces that a detector finds with its boxes."""
    yunet = YuNet(detector, score_threshold=0.3)
    found: list[tuple[Face, Array]] = []
    for face in faces:
        boxes, _ = find_boxes(yunet, read_photo(face.image), "bgr")
        shares = overlaps(face.bbox_xyxy, boxes)
        if len(boxes) and shares.max() > SAME_FACE:
            found.append((face, boxes[int(shares.argmax())]))
    return [face for face, _ in found], [box for _, box in found]


def figures(found: Consensus, faces: Sequence[Face]) -> list[str]:
    """The last columns of a row."""
    truth = np.stack([face.landmarks for face in faces if face.landmarks is not None])
    nme = nme_per_face(found.landmarks, truth, WFLW_98.normalizing_points)
    errors = np.linalg.norm(found.landmarks - truth, axis=2) / face_sizes(truth, WFLW_98)[:, None]
    weights = found.weights[:, None] * found.point_weights
    inside = [spearmanr(spread, error).statistic for spread, error in zip(found.disagreement, errors, strict=True)]
    doubtful = found.weights < DOUBTFUL
    return [
        f"{nme.mean():.4f}",
        f"{(errors * weights).sum() / weights.sum():.4f} / {errors.mean():.4f}",
        f"{spearmanr(found.disagreement.ravel(), errors.ravel()).statistic:.3f}",
        f"{-spearmanr(weights.ravel(), errors.ravel()).statistic:.3f}",
        f"{np.mean(inside):.3f}",
        f"{spearmanr(found.face_disagreement, nme).statistic:.3f}",
        f"{-spearmanr(found.weights, nme).statistic:.3f}",
        f"{doubtful.mean():.0%}, {nme[doubtful].mean():.4f} / {nme[~doubtful].mean():.4f}",
    ]


def rows(teachers: Sequence[LandmarkModel], sources: dict[str, tuple[list[Face], list[Array]]]) -> Iterator[list[str]]:
    """All rows, the last teacher alone among them."""
    for (boxes, (faces, places)), (flip, crops, passes) in product(sources.items(), SETTINGS):
        for chosen in (teachers, teachers[-1:]) if (flip, crops, passes) == (True, 2, 2) else (teachers,):
            if len(chosen) * crops * (1 + flip) > 1:
                found = labelled(faces, places, chosen, (flip, crops, passes))
                setting = [f"{boxes} ({len(faces)})", str(len(chosen)), "yes" if flip else "no", str(crops)]
                yield [*setting, str(passes), *figures(found, faces)]


@click.command()
@click.argument("teachers", nargs=-1, type=click.Path(path_type=Path))
def main(teachers: tuple[Path, ...]) -> None:
    """Print the table of docs/labelling.md."""
    shared = shared_folder()
    paths = teachers or sorted((shared / "models/reference").glob("*.onnx"))
    opened = [open_landmark_model(path) for path in paths]
    faces = list(read_wflw(shared / "data/WFLW"))
    sources = {
        "true": (faces, [face.bbox_xyxy for face in faces]),
        "YuNet": detected(faces, shared / "models/detectors/yunet_n_dynamic.onnx"),
    }
    head = ["boxes", "teachers", "flip", "crops", "passes", "NME", "error, weighted / plain", "landmarks: d"]
    head += ["weight x c", "within a face", "faces: D", "weight"]
    print_table([*head, f"weight < {DOUBTFUL}: share, NME / NME of the rest"], rows(opened, sources))


if __name__ == "__main__":
    main()
