"""Compares landmarks in video: this runtime, YuNet with the published GhostOne in every frame, and MediaPipe FaceMesh.

    PFLD_EDGE_SHARED=<folder> python benchmarks/peers.py [--mediapipe PYTHON] [--frames 150]

Each runs in a process of its own on the same 1080p frames: a bundled portrait, its face 181 pixels wide, moves on a
circle for two thirds of them and then stands still under noise. PYTHON is an interpreter with ``mediapipe`` 0.10.21,
whose dependencies don't fit beside ours. Errors are those of the six corners of eyes and mouth, which all three have,
as a share of the distance of the outer eye corners; jitter is their standard deviation while the face stands still.
Leave the machine idle.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Find = Callable[[Array, float], Array | None]
"""From an RGB frame and its time in seconds to the ``(6, 2)`` corners, or None where no face is found."""

PORTRAITS = Path(__file__).parents[1] / "calib/pfld_edge_calib/portraits"
WIDTH, HEIGHT, FACE, FPS = 1920, 1080, 181, 30
WFLW_CORNERS = [60, 64, 68, 72, 76, 82]
FACEMESH_CORNERS = [33, 133, 362, 263, 61, 291]


def frames(count: int) -> Iterator[tuple[Array, Array]]:
    """Give the frames, ``(1080, 1920, 3)`` uint8 RGB, and the true ``(6, 2)`` corners in each."""
    header, *rows = (PORTRAITS / "landmarks.csv").read_text(encoding="utf-8").splitlines()
    name, *values = next(row for row in rows if "collins" in row).split(",")
    numbers = dict(zip(header.split(",")[1:], map(float, values), strict=True))
    points = np.array([[numbers[f"x{point}"], numbers[f"y{point}"]] for point in range(98)])
    photo = np.asarray(cv2.imread(str(PORTRAITS / name)))[:, :, ::-1].copy()
    scale, center = FACE / np.ptp(points[:, 0]), points.mean(axis=0)
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (18, 32, 3)).astype(np.uint8)
    background = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for number in range(count):
        angle = 2 * np.pi * min(number, 2 * count // 3) / 90
        place = np.array([WIDTH / 2 + 400 * np.cos(angle), HEIGHT / 2 + 150 * np.sin(angle)])
        matrix = np.column_stack([np.eye(2) * scale, place - scale * center])
        frame = cv2.warpAffine(
            photo, matrix, (WIDTH, HEIGHT), background.copy(), cv2.INTER_AREA, cv2.BORDER_TRANSPARENT
        )
        noise = random.normal(0, 2, (HEIGHT // 4, WIDTH // 4, 3)).repeat(4, axis=0).repeat(4, axis=1)
        yield np.clip(frame + noise, 0, 255).astype(np.uint8), points[WFLW_CORNERS] * scale + matrix[:, 2]


def ours(model: str = "BUNDLED_MODEL") -> Find:
    """The runtime's tracker with a bundled landmark model, one face as MediaPipe below."""
    import pfld_edge_runtime

    tracker = pfld_edge_runtime.FaceTracker(landmarker=getattr(pfld_edge_runtime, model), max_faces=1)

    def find(frame: Array, seconds: float) -> Array | None:
        faces = tracker(frame, seconds, "rgb")
        return faces.landmarks[0, WFLW_CORNERS] if len(faces) else None

    return find


def published() -> Find:
    """YuNet at 640 pixels and the published GhostOne, both in every frame, in this runtime."""
    from pfld_edge_convert.landmark_models import open_landmark_model
    from pfld_edge_runtime import FaceAnalyzer, FaceLandmarker

    models = Path(os.environ["PFLD_EDGE_SHARED"]) / "models"
    network = FaceLandmarker(open_landmark_model(models / "reference/PFLD_GhostOne_112_1_opt_sim.onnx"))
    analyze = FaceAnalyzer(models / "detectors/yunet_n_dynamic.onnx", network, refine=0)

    def find(frame: Array, _: float) -> Array | None:
        faces = analyze(frame, "rgb")
        return faces.landmarks[0, WFLW_CORNERS] if len(faces) else None

    return find


def mediapipe() -> Find:
    """FaceMesh in video mode, one face."""
    from mediapipe.python.solutions.face_mesh import FaceMesh

    mesh = FaceMesh(static_image_mode=False, max_num_faces=1)

    def find(frame: Array, _: float) -> Array | None:
        faces = mesh.process(frame).multi_face_landmarks
        if not faces:
            return None
        points = [faces[0].landmark[corner] for corner in FACEMESH_CORNERS]
        return np.array([[point.x * WIDTH, point.y * HEIGHT] for point in points])

    return find


PEERS: dict[str, tuple[str, Callable[[], Find]]] = {
    "ours": ("pfld-edge, bundled networks, `FaceTracker`", ours),
    "fast": ("the same with `FAST_MODEL`", partial(ours, "FAST_MODEL")),
    "published": ("YuNet and published GhostOne, every frame", published),
    "mediapipe": ("MediaPipe FaceMesh 0.10.21, video mode", mediapipe),
}


def follow(find: Find, count: int) -> dict[str, float]:
    """Run one of them over the frames; the first ten are not timed."""
    walls, cores, corners, truths = list[float](), list[float](), list[Array](), list[Array]()
    for number, (frame, truth) in enumerate(frames(count)):
        wall, processor = time.perf_counter(), time.process_time()
        found = find(frame, number / FPS)
        if number >= 10:
            walls.append(time.perf_counter() - wall)
            cores.append(time.process_time() - processor)
        corners.append(np.full((6, 2), np.nan) if found is None else np.asarray(found))
        truths.append(truth)
    seen, true = np.array(corners), np.array(truths)
    eyes = float(np.linalg.norm(true[0, 0] - true[0, 3]))
    return {
        "median": 1000 * median(walls),
        "mean": 1000 * mean(walls),
        "processor": 1000 * mean(cores),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "found": float(np.isfinite(seen).all(axis=(1, 2)).mean()),
        "error": float(np.nanmean(np.linalg.norm(seen - true, axis=2)) / eyes),
        "jitter": float(np.nanstd(seen[5 * count // 6 :], axis=0).mean() / eyes),
    }


def main() -> None:
    """Run each in a fresh process and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mediapipe", help="an interpreter with mediapipe; left out without one")
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--only", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(follow(PEERS[options.only][1](), options.frames)))  # noqa: T201
        return
    pythons = {"ours": sys.executable, "fast": sys.executable, "mediapipe": options.mediapipe}
    if "PFLD_EDGE_SHARED" in os.environ:
        pythons["published"] = sys.executable
    head = "| | ms a frame, median | mean | processor ms | peak MB | faces found | error | jitter |"
    print(f"{head}\n{'|---' * 8}|")  # noqa: T201
    for name, python in pythons.items():
        if python is None:
            continue
        command = [python, __file__, "--only", name, "--frames", str(options.frames)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command
        found = json.loads(done.stdout.splitlines()[-1])
        figures = [f"{found[kind]:.2f}" for kind in ("median", "mean", "processor")] + [f"{found['memory']:.0f}"]
        figures += [f"{found['found']:.0%}", f"{found['error']:.4f}", f"{found['jitter']:.5f}"]
        print(f"| {PEERS[name][0]} | {' | '.join(figures)} |")  # noqa: T201


if __name__ == "__main__":
    main()
