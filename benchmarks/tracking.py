"""What tracking and smoothing do to jitter, lag and accuracy, on frames whose true motion is known.

    python benchmarks/tracking.py [--model FILE.onnx]

A photograph is drawn into 1920 x 1080 frames, its face 400 pixels large, with Gaussian noise on every pixel around it.
Truth is the network's own answer for the noise-free photograph at rest, carried along by the known motion: what is
measured is what noise, boxes and filters add. "Reference" is the exponential filter of the reference project's video
script, new = 0.7 found + 0.3 old. Everything is seeded; nothing here is a WFLW test face.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import numpy as np

from harness import model_option, print_table
from pfld_edge_calib import Face, portraits, read_photo
from pfld_edge_runtime import FaceLandmarker, FaceTracker, OneEuro, Smoothing, tight_box
from pfld_edge_runtime.arrays import Float64Array, Uint8Array
from pfld_edge_runtime.tracking.smoothing import FaceSmoother

Frames = Iterator[tuple[Uint8Array, Float64Array]]

FPS = 30
FACE = 400.0
BOX_JITTER = 1.0
"""Pixels, the deviation of each edge of the detector's box: 0.25 % of the face."""

PAPER, TUNED = OneEuro(1.0, 10.0), Smoothing()
EYELIDS = [61, 62, 63, 69, 70, 71]


@dataclass(frozen=True)
class Scene:
    """A photograph and where its face's landmarks are, as the network sees them at rest."""

    photo: Uint8Array
    center: Float64Array
    scale: float
    rest: Float64Array

    def matrix(self, pose: Float64Array) -> Float64Array:
        """The ``(2, 3)`` map from the photograph to the frame: shift in faces, turn, logarithm of size."""
        size = self.scale * np.exp(pose[3])
        turn = size * np.array([[np.cos(pose[2]), -np.sin(pose[2])], [np.sin(pose[2]), np.cos(pose[2])]])
        matrix: Float64Array = np.c_[turn, np.array([960, 540]) + FACE * pose[:2] - turn @ self.center]
        return matrix

    def truth(self, pose: Float64Array) -> Float64Array:
        """``(P, 2)`` landmarks in the frame."""
        matrix = self.matrix(pose)
        found: Float64Array = self.rest @ matrix[:, :2].T + matrix[:, 2]
        return found

    def draw(self, pose: Float64Array) -> Uint8Array:
        """A frame without noise."""
        size, border = (1920, 1080), cv2.BORDER_REFLECT
        frame = cv2.warpAffine(self.photo, self.matrix(pose), size, flags=cv2.INTER_CUBIC, borderMode=border)
        return np.asarray(frame, np.uint8)


def scene(face: Face, landmarker: FaceLandmarker) -> Scene:
    """Set up a face, from its box alone."""
    photo, box = read_photo(face.image), face.bbox_xyxy
    for _ in range(2):
        box = tight_box(landmarker(photo, [box], "bgr")[0])
    plain = Scene(photo, (box[:2] + box[2:]) / 2, FACE / float((box[2:] - box[:2]).max()), np.zeros((1, 2)))
    matrix = plain.matrix(np.zeros(4))
    center = np.array([960, 540])
    found = landmarker(plain.draw(np.zeros(4)), [np.r_[center - FACE / 2, center + FACE / 2]], "bgr")[0]
    rest = (found - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    return Scene(photo, plain.center, plain.scale, rest.astype(np.float64))


def motion(count: int, seed: int) -> Float64Array:
    """``(count, 4)`` poses: moves of least jerk between random poses, rests between them, a slow sway throughout."""
    rng, seconds = np.random.default_rng(seed), np.arange(count) / FPS
    poses, pose, start = np.zeros((count, 4)), np.zeros(4), 1.0
    while start < count / FPS:
        goal, lasts = rng.uniform(-1, 1, 4) * [0.8, 0.4, 0.25, 0.15], rng.uniform(0.35, 1.2)
        part = np.clip((seconds - start) / lasts, 0, 1)
        poses += (goal - pose) * (part**3 * (10 - 15 * part + 6 * part**2))[:, None]
        pose, start = np.asarray(goal), start + lasts + rng.choice([0, 0.2, 0.8])
    poses[:, 0] += 0.03 * np.sin(2 * np.pi * 0.15 * seconds)
    poses[:, 1] += 0.02 * np.sin(2 * np.pi * 0.23 * seconds + 1)
    return poses


def frames(scene: Scene, poses: Float64Array, noise: float, seed: int = 0) -> Frames:
    """Noisy frames, each with its truth."""
    rng = np.random.default_rng(seed)
    bank = np.random.default_rng(99).normal(0, noise, (1500, 1500, 3)).astype(np.int16)
    clean, drawn = np.zeros(0, np.uint8), np.full(4, np.nan)
    for pose in poses:
        if not np.array_equal(pose, drawn):
            clean, drawn = scene.draw(pose), pose
        frame, truth = clean.copy(), scene.truth(pose)
        left, top = np.maximum(truth.mean(axis=0).astype(int) - 400, 0)
        part = frame[top : top + 800, left : left + 800]
        y, x = rng.integers(0, 700, 2)
        part[:] = np.clip(part + bank[y : y + part.shape[0], x : x + part.shape[1]], 0, 255)
        yield frame, truth


Method = Callable[[Uint8Array, Float64Array], Float64Array]
"""From a frame and the true box to landmarks."""
Filter = Callable[[Float64Array, float], Float64Array]
"""From landmarks, and the seconds since the last ones, to smoothed landmarks."""


def boxed(landmarker: FaceLandmarker, jitter: float) -> Method:
    """A detector's box in every frame."""
    rng = np.random.default_rng(5)
    return lambda frame, box: landmarker(frame, [box + rng.normal(0, jitter, 4)], "bgr")[0].astype(np.float64)


def chained(landmarker: FaceLandmarker) -> Method:
    """The raw landmarks of a frame give the next frame's box."""
    last: list[Float64Array] = []

    def method(frame: Uint8Array, box: Float64Array) -> Float64Array:
        last[:] = [landmarker(frame, [tight_box(last[0]) if last else box], "bgr")[0].astype(np.float64)]
        return last[0]

    return method


def exponential() -> Filter:
    """The filter of the reference project."""
    last: list[Float64Array] = []

    def smooth(found: Float64Array, _: float) -> Float64Array:
        last[:] = [0.7 * found + 0.3 * (last[0] if last else found)]
        return last[0]

    return smooth


def reference(raw: Method) -> Method:
    """Raw landmarks through the filter of the reference project."""
    smooth = exponential()
    return lambda frame, box: smooth(raw(frame, box), 1 / FPS)


def tracked(landmarker: FaceLandmarker, smoothing: Smoothing | OneEuro | None) -> Method:
    """Our tracker, with a detector whose boxes jitter."""
    rng, boxes = np.random.default_rng(5), np.zeros((1, 4))
    detector = lambda _: boxes + rng.normal(0, BOX_JITTER, 4)  # noqa: E731
    tracker = FaceTracker(detector, landmarker, max_faces=1, smoothing=smoothing)

    def method(frame: Uint8Array, box: Float64Array) -> Float64Array:
        boxes[:] = box
        faces = tracker(frame, color="bgr")
        if len(faces) == 0:
            raise click.ClickException("the tracker lost the face")
        return faces.landmarks[0].astype(np.float64)

    return method


def answers(methods: Sequence[Method], shown: Frames) -> tuple[Float64Array, Float64Array]:
    """``(M, T, P, 2)`` landmarks of some methods on a sequence, and the ``(T, P, 2)`` truths."""
    found, truths = [], []
    for frame, truth in shown:
        found.append([method(frame, tight_box(truth)) for method in methods])
        truths.append(truth)
    return np.array(found).swapaxes(0, 1), np.array(truths)


def jitter(found: Float64Array) -> Float64Array:
    """``(P,)`` standard deviation of each landmark in pixels, both axes together, after the first second."""
    deviation: Float64Array = np.sqrt(found[FPS:].var(axis=0).sum(axis=-1))
    return deviation


def acceleration(found: Float64Array) -> float:
    """Mean length of the second difference, pixels per frame squared."""
    return float(np.linalg.norm(np.diff(found, n=2, axis=0), axis=-1).mean())


def lag(found: Float64Array, truth: Float64Array) -> float:
    """Frames by which the truth must be delayed to fit best; constant differences don't count."""
    steps, last = np.arange(len(truth)), len(truth) - 1

    def misfit(delay: float) -> float:
        place = np.clip(steps - delay, 0, last)
        low = np.minimum(place.astype(int), last - 1)
        part = (place - low)[:, None, None]
        off = (found - truth[low] * (1 - part) - truth[low + 1] * part)[10:]
        return float(np.linalg.norm(off - off.mean(axis=0), axis=-1).mean())

    return float(min(np.arange(-1, 5, 0.05), key=misfit))


def noise_for(method: Callable[[], Method], scene: Scene, goal: float) -> float:
    """The pixel noise at which a method jitters so many pixels on a still face, or 1 where it does so at once."""
    low, high = 1.0, 80.0
    for _ in range(5):
        middle = (low + high) / 2
        found, _ = answers([method()], frames(scene, np.zeros((3 * FPS, 4)), middle))
        low, high = (low, middle) if jitter(found[0]).mean() > goal else (middle, high)
    return low


def still_rows(scenes: dict[str, Scene], landmarker: FaceLandmarker) -> None:
    """Print the jitter of a still face where each kind of raw output jitters 2 pixels."""
    kinds: dict[str, Callable[[], Method]] = {
        "the true box": lambda: boxed(landmarker, 0.0),
        "detector's boxes": lambda: boxed(landmarker, BOX_JITTER),
        "boxes from the last landmarks": lambda: chained(landmarker),
    }
    table = []
    for name, one in scenes.items():
        for kind, raw in kinds.items():
            noise = noise_for(raw, one, 2.0)
            compared = [raw(), reference(raw()), tracked(landmarker, TUNED)]
            found, _ = answers(compared, frames(one, np.zeros((6 * FPS, 4)), noise, 1))
            rows = [jitter(track) for track in found]
            means = [f"{row.mean():.2f}" for row in rows]
            table.append([f"{name}, {kind}", f"{noise:.0f}", *means, f"{rows[-1].max():.2f} (raw {rows[0].max():.2f})"])
    print_table(
        ["a still face; raw output from", "noise", "raw", "reference", "FaceTracker", "its worst landmark"], table
    )


def moving_rows(scenes: dict[str, Scene], landmarker: FaceLandmarker, noise: float, seeds: list[int]) -> None:
    """Print acceleration, lag and error of a moving face."""
    results: dict[str, list[list[float]]] = {}
    for one in scenes.values():
        for seed in seeds:
            compared = {
                "raw, detector's boxes": boxed(landmarker, BOX_JITTER),
                "raw, boxes from the last landmarks": chained(landmarker),
                "reference, detector's boxes": reference(boxed(landmarker, BOX_JITTER)),
                "FaceTracker, smoothing=None": tracked(landmarker, None),
                "FaceTracker, OneEuro(1, 10) of the paper": tracked(landmarker, PAPER),
                "FaceTracker": tracked(landmarker, TUNED),
            }
            tracks, truth = answers(list(compared.values()), frames(one, motion(8 * FPS, seed), noise, seed))
            speed = np.linalg.norm(np.diff(truth.mean(axis=1), axis=0), axis=-1)
            results.setdefault("(the truth)", []).append([acceleration(truth), 0, 0, 0])
            for name, found in zip(compared, tracks, strict=True):
                off = np.linalg.norm(found - truth, axis=-1)
                row = [acceleration(found), off.mean(), off[1:][speed > 3].mean(), lag(found, truth)]
                results.setdefault(name, []).append(row)
    means = {name: np.mean(rows, axis=0) for name, rows in results.items()}
    table = [[name, *(f"{value:.2f}" for value in row), f"{row[3] * 1000 / FPS:.0f}"] for name, row in means.items()]
    title = f"a moving face ({len(scenes)} x {len(seeds)} sequences of 8 s, noise {noise:.0f})"
    print_table([title, "acceleration", "error, px", "error over 3 px / frame", "lag, frames", "lag, ms"], table)


def blink_rows(scenes: dict[str, Scene], landmarker: FaceLandmarker) -> None:
    """Print how much is left of a blink: eyelids that drop 14 pixels and rise again within 0.26 s."""
    seconds = np.arange(6 * FPS) / FPS
    blink = sum(np.clip(1 - np.abs(seconds - at) / 0.13, 0, 1) for at in (2.03, 3.5, 5.01))
    filters: dict[str, Callable[[], Filter]] = {
        "reference": exponential,
        "FaceTracker, OneEuro(1, 10) of the paper": lambda: FaceSmoother(Smoothing(PAPER, PAPER)),
        "FaceTracker": lambda: FaceSmoother(TUNED),
    }
    kept: dict[str, list[float]] = {}
    for one in scenes.values():
        noise = noise_for(lambda: boxed(landmarker, 0.0), one, 2.0)
        raw = answers([boxed(landmarker, 0.0)], frames(one, np.zeros((6 * FPS, 4)), noise, 2))[0][0]
        moved = raw.copy()
        moved[:, EYELIDS, 1] += 14 * np.asarray(blink)[:, None]
        for name, make in filters.items():
            smoothed = []
            for signal in (moved, raw):
                smooth = make()
                smoothed.append(np.array([smooth(points, 1 / FPS) for points in signal])[:, EYELIDS, 1].mean(axis=1))
            kept.setdefault(name, []).append(float((smoothed[0] - smoothed[1]).max() / (14 * np.max(blink))))
    head = ["a blink of 0.26 s, raw jitter 2 px", "depth kept"]
    print_table(head, ([name, f"{np.mean(shares):.0%}"] for name, shares in kept.items()))


@click.command()
@model_option
def main(model: Path | None) -> None:
    """Print tables in Markdown."""
    landmarker = FaceLandmarker(model)
    scenes = {face.image.stem: scene(face, landmarker) for face in portraits()}
    still_rows(scenes, landmarker)
    for noise in (8.0, 24.0):
        moving_rows(scenes, landmarker, noise, [10, 11])
    blink_rows(scenes, landmarker)


if __name__ == "__main__":
    main()
