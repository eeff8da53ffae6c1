"""Fits the confidence curve of a network, and tells how far it can be trusted.

    PFLD_EDGE_SHARED=<folder> python benchmarks/confidence.py [--model MODEL.onnx]

Fitted on the 364 faces of youtube68's test.csv, whose photographs no network of ours was trained on (other pictures of
the same people were), each in a tight box, in one that errs as a detector does, in one that is badly off, and half
covered; and on boxes without a face from WFLW's unlabelled photographs. Good means an NME under 0.1 on the 68 points,
once the labels are moved by where on average they lie off the network's points on train.csv: the set's points aren't
quite WFLW's (its contour begins lower, for one), which is no error of a face. Half of the people fit, the other half
judge; then all of them fit the curve that is printed. WFLW's 120 test faces judge it and fit nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, spearmanr

from harness import model_option, print_table, shared_folder
from pfld_edge_calib import Face, as_detected, nme_per_face, open_faces, read_photo, read_points_csv
from pfld_edge_calib.datasets.wflw import WFLW_ATTRIBUTES
from pfld_edge_calib.evaluation.metrics import fitted_curve
from pfld_edge_calib.photo import listed_paths
from pfld_edge_runtime import IBUG_68, FaceLandmarker
from pfld_edge_runtime.arrays import BoolArray, Float32Array, Float64Array, Uint8Array
from pfld_edge_runtime.contract import ConfidenceCurve
from pfld_edge_runtime.detection.architectures import YuNet
from pfld_edge_runtime.geometry.confidence import mirror_disagreement, predict_with_mirror
from pfld_edge_runtime.geometry.wflw_points import landmarks_68

Cases = NDArray[np.void]
THRESHOLD = 0.1
BINS = (0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0001)
COMPLEX = np.array([1, 1j])
"""Makes complex numbers of vectors: x the real part, y the imaginary one."""


@dataclass(frozen=True)
class Case:
    """A box in a photograph, and the landmarks in it; none where there is no face."""

    image: Uint8Array
    box: Float64Array
    truth: Float32Array | None
    person: str


SEEN = np.dtype([("disagreement", float), ("nme", float), ("person", "U64")])
"""What a network made of a case: its disagreement and its true error, infinite without a face."""


@click.command()
@model_option
@click.option("--seed", default=0, show_default=True, help="Of boxes and covers.")
def main(model: Path | None, seed: int) -> None:
    """Print a curve and its reliability."""
    shared = shared_folder()
    landmarker, random = FaceLandmarker(model), np.random.default_rng(seed)
    folder = shared / "data/youtube68"
    others = read_points_csv(folder / "train.csv", folder / "images", "person")[::8]
    listed = read_points_csv(folder / "test.csv", folder / "images", "person")
    youtube = list(moved(listed, label_offsets(landmarker, others)))
    faces = {
        "tight boxes": seen(landmarker, cases(youtube)),
        "boxes as detected": seen(landmarker, cases(as_detected(youtube, seed))),
        "boxes badly off": seen(landmarker, cases(as_detected(youtube, seed, shift=0.15, scale=0.25))),
        "half covered": seen(landmarker, (covered(case, random) for case in cases(as_detected(youtube, seed)))),
    }
    nothing = seen(landmarker, backgrounds(shared, random))
    everything = np.concatenate([nothing, *faces.values()])
    first = np.isin(everything["person"], np.unique(everything["person"])[::2])
    parts = (everything[first], everything)
    trial, curve = (fitted_curve(part["disagreement"], part["nme"] < THRESHOLD) for part in parts)
    click.echo(f"curve: middle={curve.middle:.4f}, steepness={curve.steepness:.2f} ({len(everything)} cases)")
    click.echo(f"fitted on half of the people: middle={trial.middle:.4f}, steepness={trial.steepness:.2f}")
    wflw = open_faces(shared / "data/WFLW").load()
    tight = seen(landmarker, cases(wflw))
    detected = seen(landmarker, cases(as_detected(wflw, seed)))
    sets = {**faces, "no face": nothing, "WFLW, tight boxes": tight, "WFLW, boxes as detected": detected}
    for name in WFLW_ATTRIBUTES:
        sets[f"WFLW, {name}"] = tight[np.array([name in face.attributes for face in wflw])]
    rows = [figures("the other half of the people", everything[~first], trial, nothing)]
    rows += [figures(name, part, curve, nothing) for name, part in sets.items()]
    head = ["", "cases", "NME over 0.1", "confidence, mean", "Brier", "Spearman", "AUC, NME over 0.1", "AUC, no face"]
    print_table(head, rows)
    for name, part, used in (
        ("the other half of the people", everything[~first], trial),
        ("WFLW", np.concatenate([tight, detected]), curve),
    ):
        head = [f"confidence, {name}", "cases", "mean", "share with NME under 0.1"]
        print_table(head, calibration_rows(part, used))


def cases(faces: Sequence[Face]) -> Iterator[Case]:
    """The faces of a set, in their boxes."""
    for face in faces:
        yield Case(read_photo(face.image), face.bbox_xyxy, face.landmarks, face.group)


def label_offsets(landmarker: FaceLandmarker, faces: Sequence[Face]) -> NDArray[np.complex128]:
    """Where the 68 labels lie off the network's points on average, ``(68,)``.

    As complex shares of the line from eye corner to eye corner, and symmetric: what differs between the sides is the
    network's error, not the scheme's.
    """
    truth = np.stack([face.landmarks for face in faces if face.landmarks is not None])
    found = np.concatenate([landmarks_68(landmarker(case.image, case.box, "bgr")) for case in cases(faces)])
    mean = ((truth - found) @ COMPLEX / eye_lines(truth)).mean(axis=0)
    return np.asarray((mean - mean[list(IBUG_68.mirror)].conj()) / 2)


def moved(faces: Sequence[Face], offsets: NDArray[np.complex128]) -> Iterator[Face]:
    """The faces with labels where WFLW's annotators would put them."""
    for face in faces:
        if face.landmarks is not None:
            shift = offsets * eye_lines(face.landmarks[None])[0]
            labels = face.landmarks - np.column_stack([shift.real, shift.imag])
            yield replace(face, landmarks=labels.astype(np.float32))


def eye_lines(landmarks: Float32Array) -> NDArray[np.complex128]:
    """From one outer eye corner to the other, ``(N, 1)``."""
    first, second = IBUG_68.normalizing_points
    return np.asarray((landmarks[:, second] - landmarks[:, first]) @ COMPLEX)[:, None]


def covered(case: Case, random: np.random.Generator) -> Case:
    """Hide part of the face behind one colour."""
    low, high = case.box[:2], case.box[2:]
    sides = (high - low) * random.uniform(0.3, 0.7, 2)
    corner = low + random.uniform(0, 1, 2) * (high - low - sides)
    (x0, y0), (x1, y1) = corner.clip(0).astype(int), (corner + sides).clip(0).astype(int)
    image = case.image.copy()
    image[y0:y1, x0:x1] = random.integers(0, 256, 3)
    return replace(case, image=image)


def backgrounds(shared: Path, random: np.random.Generator) -> Iterator[Case]:
    """Boxes in which a detector with a low threshold sees no part of a face."""
    wflw = shared / "data/WFLW"
    detector = YuNet(shared / "models/detectors/yunet_n_dynamic.onnx", score_threshold=0.3)
    for path in listed_paths(wflw / "unlabelled_images.txt", wflw / "WFLW_images"):
        image = read_photo(path)
        faces, side = detector(image, "bgr"), random.uniform(40, 250)
        low = random.uniform(0, 1, 2) * (np.array(image.shape[1::-1]) - side)
        apart = (faces[:, :2] > low + side) | (faces[:, 2:4] < low)
        if low.min() >= 0 and apart.any(axis=1).all():
            yield Case(image, np.concatenate([low, low + side]), None, path.name)


def seen(landmarker: FaceLandmarker, given: Iterator[Case]) -> Cases:
    """Run the network over cases, each with its mirror image."""
    rows, scheme = [], landmarker.contract.landmarks
    for case in given:
        found, mirrored = predict_with_mirror(landmarker, case.image, case.box, "bgr")
        apart, error = mirror_disagreement(found, mirrored, scheme)[0], np.inf
        if case.truth is not None:
            wider = len(case.truth) != IBUG_68.num_landmarks
            ends = (scheme if wider else IBUG_68).normalizing_points
            error = nme_per_face(found if wider else landmarks_68(found), case.truth[None], ends)[0]
        rows.append((apart, error, case.person))
    return np.array(rows, SEEN)


def figures(name: str, data: Cases, curve: ConfidenceCurve, nothing: Cases) -> list[str]:
    """One row of the table."""
    disagreement, nme = data["disagreement"], data["nme"]
    confidence, bad, face = curve(disagreement), nme >= THRESHOLD, np.isfinite(nme)
    row = [name, str(len(bad)), f"{bad.mean():.1%}", f"{confidence.mean():.2f}"]
    row += [f"{((confidence - ~bad) ** 2).mean():.3f}", "", "", ""]
    if 0 < bad.sum() < len(bad):
        row[6] = f"{auc(disagreement, bad):.3f}"
    if face.any():
        apart = np.concatenate([disagreement[face], nothing["disagreement"]])
        row[5] = f"{spearmanr(disagreement[face], nme[face])[0]:.2f}"
        row[7] = f"{auc(apart, np.arange(len(apart)) >= face.sum()):.3f}"
    return row


def auc(score: Float64Array, positive: BoolArray) -> float:
    """Area under the ROC curve."""
    found = mannwhitneyu(score[positive], score[~positive]).statistic
    return float(found / (positive.sum() * (~positive).sum()))


def calibration_rows(data: Cases, curve: ConfidenceCurve) -> Iterator[list[str]]:
    """Mean confidence and share of good landmarks, by confidence."""
    confidence, good = curve(data["disagreement"]), data["nme"] < THRESHOLD
    for low, high in pairwise(BINS):
        chosen = (confidence >= low) & (confidence < high)
        if chosen.any():
            means = (f"{confidence[chosen].mean():.2f}", f"{good[chosen].mean():.2f}")
            yield [f"{low:.1f} to {min(high, 1):.1f}", str(chosen.sum()), *means]


if __name__ == "__main__":
    main()
