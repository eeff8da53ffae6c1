"""Pseudo-labels faces with an ensemble of published 98-point networks, for the bundled models' recipes.

    python train/recipes/pseudo_label.py SHARED OUT
    python train/recipes/pseudo_label.py SHARED runs/turned turned.csv

SHARED holds data/WFLW, data/youtube68, data/lfw, models/reference, models/teachers, models/detectors. The first form
writes one CSV for each source into OUT: image, x0, y0, ... x97, y97 (pixels), c0 ... c97; it resumes at the first
source that is not complete. The second form labels the faces of a CSV of `turn_faces.py` again, into labelled.csv of
the same folder: rotated points put a hidden cheek behind the face, WFLW's annotators put it at the visible outline.
Where the eye distance is below a third of the box, such points lie 0.2 to 0.45 eye distances from the networks'.
Needs the PyPI package MNN.

The label is the median over the networks, each with its mirror image and two margins, of a second pass on the box of
the first pass's landmarks. A point's confidence c falls with the networks' disagreement, which is high for hidden
points in large pose. Two detectors with low thresholds find the faces; where the networks disagree altogether there is
no face. LFW's photographs are easy: every third one is labelled, with one detector and one margin.
"""

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from pfld_edge_calib.files import replacing
from pfld_edge_runtime import WFLW_98, Contract, FaceLandmarker, crop_faces, crop_windows, tight_box
from pfld_edge_runtime.detection import SCRFD, YuNet, find_boxes
from pfld_edge_runtime.detection.onnx_detector import non_maximum_suppression

Array = NDArray[np.float32]
Network = Callable[[NDArray[np.uint8]], Array]

MIRROR = np.array(WFLW_98.mirror)
# The 300-W 68 points inside the 98 of WFLW: every other contour point, the upper brows, nose, eyes, lips.
_BROWS_AND_NOSE = (*range(33, 38), *range(42, 47), *range(51, 60))
_EYES = (60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75)
FROM_68 = np.array([*range(0, 33, 2), *_BROWS_AND_NOSE, *_EYES, *range(76, 96)])
# As shares of the face's size: up to the first disagreement a point has full confidence; a face with a mean above the
# second is left out.
TYPICAL_DISAGREEMENT, WORST_DISAGREEMENT = 0.03, 0.25
SMALLEST_FACE = 26
SAME_FACE = 0.35
EASY = "lfw"
HEADER = ["image", *(f"{axis}{i}" for i in range(98) for axis in "xy"), *(f"c{i}" for i in range(98))]


def label_row(image: str, landmarks: Array, confidence: Array) -> list[str]:
    """Format a face's line of the CSV."""
    return [image, *(f"{value:.2f}" for value in landmarks.ravel()), *(f"{value:.3f}" for value in confidence)]


def write_labels(target: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV of labels by renaming."""
    with replacing(target) as binary:
        file = io.TextIOWrapper(binary, newline="", write_through=True)
        csv.writer(file).writerows(chain([HEADER], rows))
        file.detach()


def reference_network(path: Path) -> Network:
    """One of the published PFLD networks, 112 x 112."""
    return FaceLandmarker(path, contract=Contract()).predict_crops


def peppa_network(path: Path) -> Network:
    """The MNN network: 128 x 128 BGR, pixels / 255, first 196 of 203 outputs."""
    import MNN

    session = MNN.Interpreter(str(path))
    handle = session.createSession({"numThread": 1})
    entry, leave = session.getSessionInput(handle), session.getSessionOutput(handle)

    def predict(crops: NDArray[np.uint8]) -> Array:
        outputs = []
        for crop in crops:
            pixels = cv2.resize(crop, (128, 128)).astype(np.float32).transpose(2, 0, 1)[None] / 255
            shape = (1, 3, 128, 128)
            entry.copyFrom(MNN.Tensor(shape, MNN.Halide_Type_Float, pixels, MNN.Tensor_DimensionType_Caffe))
            session.runSession(handle)
            holder = MNN.Tensor(
                (1, 203), MNN.Halide_Type_Float, np.zeros((1, 203), np.float32), MNN.Tensor_DimensionType_Caffe
            )
            leave.copyToHostTensor(holder)
            outputs.append(np.array(holder.getData(), np.float32).reshape(-1)[:196].reshape(98, 2))
        return np.stack(outputs)

    return predict


def with_mirror(network: Network, crops: NDArray[np.uint8]) -> Array:
    """Predictions for the crop and, mapped back, for its mirror image: ``(2N, 98, 2)``."""
    mirrored = network(np.ascontiguousarray(crops[:, :, ::-1]))[:, MIRROR]
    mirrored[:, :, 0] = 1 - mirrored[:, :, 0]
    return np.concatenate([network(crops), mirrored])


class Labeller:
    """The networks and detectors of one process."""

    def __init__(self, shared: Path) -> None:
        self.fast = [reference_network(path) for path in sorted((shared / "models/reference").glob("*.onnx"))]
        self.slow = [peppa_network(shared / "models/teachers/peppa_kps98_128.MNN")]
        folder = shared / "models/detectors"
        self.detectors = [
            YuNet(folder / "yunet_n_dynamic.onnx", score_threshold=0.5),
            SCRFD(folder / "scrfd_2.5g_kps.onnx", score_threshold=0.4),
        ]

    def detect(self, image: NDArray[np.uint8], *, easy: bool) -> Array:
        """Boxes of the faces that either detector finds, only the first where faces are easy: ``(N, 4)`` pixels."""
        found = [find_boxes(detector, image, "bgr") for detector in self.detectors[: 1 if easy else 2]]
        boxes, scores = np.concatenate([boxes for boxes, _ in found]), np.concatenate([scores for _, scores in found])
        return boxes[non_maximum_suppression(boxes, scores, SAME_FACE)]

    def label(self, image: NDArray[np.uint8], box: Array, *, easy: bool) -> tuple[Array, Array, float]:
        """Landmarks in pixels, the networks' disagreement in pixels for each, and the face's size."""
        first = crop_windows(box, 1.2)
        crop = crop_faces(image, first, 112)
        rough = np.mean([with_mirror(network, crop).mean(0) for network in self.fast[: 1 if easy else None]], 0)
        box = tight_box(first.to_image(rough[None])[0]).astype(np.float32)
        votes = []
        for margin in (1.2,) if easy else (1.2, 1.3):
            window = crop_windows(box, margin)
            large = crop_faces(image, window, 128)
            crop = crop_faces(image, window, 112)
            guesses = [with_mirror(network, crop).mean(0) for network in self.fast]
            guesses += [with_mirror(network, large).mean(0) for network in self.slow]
            votes.extend(window.to_image(np.stack(guesses)))
        middle = np.median(votes, 0)
        spread = np.linalg.norm(np.std(votes, 0), axis=1)
        # In profile the eye distance vanishes, and the box gives the face's size.
        size = max(float(np.linalg.norm(middle[60] - middle[72])), 0.35 * float(np.ptp(middle, axis=0).max()))
        return middle.astype(np.float32), spread, size


def sources(shared: Path) -> Iterator[tuple[str, list[tuple[Path, Array | None]]]]:
    """Name, and the photographs with their true 68 points where there are any."""
    wflw = shared / "data/WFLW"
    names = (wflw / "unlabelled_images.txt").read_text(encoding="utf-8").split("\n")
    yield "wflw_unlabelled", [(wflw / "WFLW_images" / name, None) for name in names if name]
    with (shared / "data/youtube68/train.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    folder = shared / "data/youtube68/images"
    yield "youtube", [(folder / row[0], np.array(row[1:137], np.float32).reshape(68, 2)) for row in rows]
    yield "lfw", [(path, None) for path in sorted((shared / "data/lfw/images").glob("*.jpg"))[::3]]


_labeller: Labeller | None = None


def start(shared: Path) -> None:
    """Load the networks once in each process."""
    global _labeller
    cv2.setNumThreads(1)
    _labeller = Labeller(shared)


def label_face(
    image: NDArray[np.uint8], box: Array, *, easy: bool, points: Array | None = None
) -> tuple[Array, Array] | None:
    """Label one face: landmarks and confidences; None where the networks disagree."""
    assert _labeller is not None  # noqa: S101 - `start` made it
    landmarks, spread, size = _labeller.label(image, box, easy=easy)
    if points is not None:
        # The two sets' points differ a little by definition, hence the third.
        spread[FROM_68] = np.maximum(spread[FROM_68], np.linalg.norm(landmarks[FROM_68] - points, axis=1) / 3)
    disagreement = spread / size
    if disagreement.mean() > WORST_DISAGREEMENT:
        return None
    return landmarks, np.minimum(1, TYPICAL_DISAGREEMENT / np.maximum(disagreement, 1e-6))


def label_photo(task: tuple[Path, str, Array | None, bool]) -> list[list[str]]:
    """Label every face of one photograph; lines of the CSV."""
    path, name, points, easy = task
    image = cv2.imread(str(path))
    if image is None or _labeller is None:
        return []
    boxes = _labeller.detect(image, easy=easy) if points is None else tight_box(points)[None].astype(np.float32)
    large = [box for box in boxes if box[2] - box[0] >= SMALLEST_FACE]
    found = [label_face(image, box, easy=easy, points=points) for box in large]
    return [label_row(name, *label) for label in found if label is not None]


def label_again(task: tuple[Path, list[str]]) -> list[list[str]]:
    """Label a face that has points; its line of the CSV."""
    folder, row = task
    image = cv2.imread(str(folder / row[0]))
    if image is None:
        return []
    box = tight_box(np.array(row[1:197], np.float32).reshape(98, 2)).astype(np.float32)
    label = label_face(np.asarray(image, np.uint8), box, easy=True)
    return [] if label is None else [label_row(row[0], *label)]


def main() -> None:
    """Label every source, or the faces of a CSV again."""
    shared, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2, initializer=start, initargs=(shared,)) as pool:
        if len(sys.argv) > 3:
            with (out / sys.argv[3]).open(encoding="utf-8") as file:
                faces = list(csv.reader(file))[1:]
            again = pool.map(label_again, [(out, row) for row in faces], chunksize=16)
            write_labels(out / "labelled.csv", chain.from_iterable(track(again, "labelling", total=len(faces))))
            return
        for name, photos in sources(shared):
            if (out / f"{name}.csv").exists():
                continue
            tasks = [(path, str(path.relative_to(shared / "data")), points, name == EASY) for path, points in photos]
            rows = pool.map(label_photo, tasks, chunksize=8)
            write_labels(out / f"{name}.csv", chain.from_iterable(track(rows, name, total=len(photos))))


if __name__ == "__main__":
    main()
