"""Labels faces with an ensemble of published 98-point networks, for the bundled models' recipes.

    python train/recipes/pseudo_label.py SHARED OUT

SHARED holds data/WFLW, data/youtube68, data/lfw, models/reference, models/teachers, models/detectors. Writes one CSV a
source into OUT: image, weight, x0, y0, ... x97, y97 (pixels). Needs the PyPI package MNN. Resumes where it was stopped.

The label is the mean over the teachers, each with its mirror image, of a second pass on the box of the first pass's
landmarks; the weight falls with the teachers' disagreement, and faces they disagree on are left out.
"""

import csv
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from pfld_edge_runtime import WFLW_98, Contract, FaceLandmarker, crop_faces, crop_windows

Array = NDArray[np.float32]
Teacher = Callable[[NDArray[np.uint8]], Array]

MIRROR = np.array(WFLW_98.mirror)
# The 300-W 68 points inside the 98 of WFLW: every other contour point, the upper brows, nose, eyes, lips.
_BROWS_AND_NOSE = (*range(33, 38), *range(42, 47), *range(51, 60))
_EYES = (60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75)
FROM_68 = np.array([*range(0, 33, 2), *_BROWS_AND_NOSE, *_EYES, *range(76, 96)])
# Standard deviation of the teachers as a fraction of the eye distance: above the first a face is dropped.
WORST_DISAGREEMENT, TYPICAL_DISAGREEMENT = 0.06, 0.02


def reference_teacher(path: Path) -> Teacher:
    """One of the published PFLD networks, 112 x 112."""
    return FaceLandmarker(path, contract=Contract()).predict_crops


def peppa_teacher(path: Path) -> Teacher:
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


def with_mirror(teacher: Teacher, crops: NDArray[np.uint8]) -> Array:
    """Predictions for the crop and, mapped back, for its mirror image: ``(2N, 98, 2)``."""
    mirrored = teacher(np.ascontiguousarray(crops[:, :, ::-1]))[:, MIRROR]
    mirrored[:, :, 0] = 1 - mirrored[:, :, 0]
    return np.concatenate([teacher(crops), mirrored])


def tight_box(landmarks: Array) -> Array:
    """The box of the evaluation protocol: integer, right and bottom edges exclusive."""
    return np.concatenate([np.floor(landmarks.min(0)), np.floor(landmarks.max(0)) + 1])


class Labeller:
    """The teachers and the detector of one process."""

    def __init__(self, shared: Path) -> None:
        """Load every network under `shared`."""
        self.fast = [reference_teacher(path) for path in sorted((shared / "models/reference").glob("*.onnx"))]
        self.slow = [peppa_teacher(shared / "models/teachers/peppa_kps98_128.MNN")]
        model = shared / "models/detectors/yunet_n_dynamic.onnx"
        self.detector = cv2.FaceDetectorYN.create(str(model), "", (320, 320), 0.7, 0.3, 200)

    def detect(self, image: NDArray[np.uint8]) -> Array:
        """Boxes of the faces, ``(N, 4)`` pixels."""
        self.detector.setInputSize((image.shape[1], image.shape[0]))
        found = self.detector.detect(image)[1]
        if found is None:
            return np.zeros((0, 4), np.float32)
        return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:4]], 1)

    def label(self, image: NDArray[np.uint8], box: Array) -> tuple[Array, float]:
        """Landmarks in pixels and the teachers' disagreement as a fraction of the eye distance."""
        first = crop_windows(box, 1.2)
        crop = crop_faces(image, first, 112)
        rough = np.mean([with_mirror(teacher, crop).mean(0) for teacher in self.fast], 0)
        box = tight_box(first.to_image(rough[None])[0])
        votes = []
        for margin in (1.2, 1.3):
            window = crop_windows(box, margin)
            large = crop_faces(image, window, 128)
            crop = crop_faces(image, window, 112)
            guesses = [with_mirror(teacher, crop).mean(0) for teacher in self.fast]
            guesses += [with_mirror(teacher, large).mean(0) for teacher in self.slow]
            votes.extend(window.to_image(np.stack(guesses)))
        mean = np.mean(votes, 0)
        spread = np.linalg.norm(np.std(votes, 0), axis=1).mean()
        # Eye distance shrinks to nothing in profile, where the box's size says more of the face's.
        size = max(float(np.linalg.norm(mean[60] - mean[72])), 0.35 * float(np.ptp(mean, axis=0).max()))
        return mean.astype(np.float32), float(spread) / size


def sources(shared: Path) -> Iterator[tuple[str, list[tuple[Path, Array | None]]]]:
    """Name, and the photographs with their true 68 points where there are any."""
    wflw = shared / "data/WFLW"
    names = (wflw / "unlabelled_images.txt").read_text().split("\n")
    yield "wflw_unlabelled", [(wflw / "WFLW_images" / name, None) for name in names if name]
    with (shared / "data/youtube68/train.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    folder = shared / "data/youtube68/images"
    yield "youtube", [(folder / row[0], np.array(row[1:137], np.float32).reshape(68, 2)) for row in rows]
    yield "lfw", [(path, None) for path in sorted((shared / "data/lfw/images").glob("*.jpg"))]


_labeller: Labeller | None = None


def start(shared: Path) -> None:
    """Load the networks once a process."""
    global _labeller
    cv2.setNumThreads(1)
    _labeller = Labeller(shared)


def label_photo(task: tuple[Path, Array | None]) -> tuple[str, list[list[str]]]:
    """Label every face of one photograph; rows of the CSV."""
    path, points = task
    image = cv2.imread(str(path))
    if image is None or _labeller is None:
        return str(path), []
    boxes = _labeller.detect(image) if points is None else tight_box(points)[None]
    rows = []
    for box in boxes:
        if box[2] - box[0] < 30:
            continue
        landmarks, disagreement = _labeller.label(image, box)
        if points is not None:
            truth = np.linalg.norm(landmarks[FROM_68] - points, axis=1).mean() / np.linalg.norm(points[36] - points[45])
            disagreement = max(disagreement, float(truth) / 3)
        if disagreement > WORST_DISAGREEMENT:
            continue
        weight = min(1.0, TYPICAL_DISAGREEMENT / max(disagreement, 1e-6))
        rows.append([f"{weight:.3f}", *(f"{value:.2f}" for value in landmarks.ravel())])
    return str(path), rows


def main() -> None:
    """Label every source."""
    shared, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    header = ["image", "weight", *(f"{axis}{i}" for i in range(98) for axis in "xy")]
    with ProcessPoolExecutor(2, initializer=start, initargs=(shared,)) as pool:
        for name, photos in sources(shared):
            target = out / f"{name}.csv"
            if target.exists():
                continue
            partial = target.with_suffix(".partial")
            with partial.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(header)
                results = pool.map(label_photo, photos, chunksize=8)
                for path, rows in track(results, description=name, total=len(photos)):
                    relative = Path(path).relative_to(shared / "data")
                    writer.writerows([[str(relative), *row] for row in rows])
            partial.replace(target)


if __name__ == "__main__":
    main()
