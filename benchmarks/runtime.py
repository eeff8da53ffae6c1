"""Times the runtime against its bars: the crop, several faces in one call, and the import.

Times are processor time of the one thread that works, which on a quiet machine is the time on the clock: neighbours
that take the processor away don't count, those that take its caches still do. What is compared runs in turn in one
process; the import is timed in fresh processes.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import click
import cv2
import numpy as np

from pfld_edge_convert.benchmark.turns import take_turns
from pfld_edge_runtime import FaceLandmarker, crop_faces, crop_windows

FACE = 300
FRAME = (1080, 1920, 3)
LINE = "  {:52} {:>12} {:>12}  {}"


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=400, show_default=True, help="Timed calls of each.")
@click.option("--starts", type=click.IntRange(1), default=9, show_default=True, help="Fresh processes for the import.")
def main(rounds: int, starts: int) -> None:
    """Print each figure with its bar: 0.25 ms, 1.3 times, 40 ms."""
    cv2.setNumThreads(1)
    # An open session also puts the heap into the state that applications have: pages stay with the process.
    landmarker = FaceLandmarker()
    frame = np.random.default_rng(0).integers(0, 256, FRAME, np.uint8)
    click.echo(LINE.format("one thread, bundled model, 1080p frame", "measured", "bar", ""))
    report_crop(landmarker, frame, rounds)
    report_batch(landmarker, frame, max(1, rounds // 4))
    report_import(starts)


def report_crop(landmarker: FaceLandmarker, frame: np.ndarray, rounds: int) -> None:
    """Time boxes to crop to landmarks in the frame, without the network, against OpenCV's resize alone."""
    box = [[800, 300, 800 + FACE, 300 + FACE]]
    contract = landmarker.contract
    size, swap = contract.input_size, contract.color_order == "bgr"
    points = np.random.default_rng(1).random((1, contract.landmarks.num_landmarks, 2), np.float32)
    (x, y), side = crop_windows(box, contract.crop.margin).corners[0].tolist(), int(FACE * contract.crop.margin)

    def ours() -> object:
        windows = crop_windows(box, contract.crop.margin)
        crop_faces(frame, windows, size, swap_channels=swap)
        return windows.to_image(points)

    def opencv() -> object:
        return cv2.resize(frame[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_LINEAR)

    found = medians({"ours": ours, "cv2": opencv}, rounds)
    report(f"crop, resize, map back, {FACE} px face, ms", found["ours"], 0.25, lower=True)
    report("  cv2.resize alone, ms", found["cv2"])
    report("  ours as a multiple of cv2.resize", found["ours"] / found["cv2"])


def report_batch(landmarker: FaceLandmarker, frame: np.ndarray, rounds: int) -> None:
    """Time 8 faces in one call against 8 calls."""
    boxes = [[150 * i, 300, 150 * i + FACE, 300 + FACE] for i in range(8)]
    one, many = f"one call of 1 face of {FACE} px, ms", "one call of 8 faces, ms"
    found = medians(
        {many: lambda: landmarker(frame, boxes), one: lambda: [landmarker(frame, [box]) for box in boxes]}, rounds
    )
    report(one, found[one] / 8)
    report(many, found[many])
    report("8 calls over one call of 8 faces", found[one] / found[many], 1.3, lower=False)


def report_import(starts: int) -> None:
    """Time `import pfld_edge_runtime` after onnxruntime, in fresh processes."""
    code = "import time, onnxruntime; t = time.thread_time(); import pfld_edge_runtime; print(time.thread_time() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)  # noqa: S603
        for _ in range(starts)
    ]
    report("import pfld_edge_runtime beyond onnxruntime, ms", 1000 * median(times), 40, lower=True)


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time the calls in turn; median milliseconds of each."""
    return {name: median(values) for name, values in take_turns(calls, rounds, clock=time.thread_time).items()}


def report(what: str, value: float, bar: float | None = None, *, lower: bool = True) -> None:
    """Print a figure, its bar, and whether it holds."""
    limit = "" if bar is None else f"{'<' if lower else '>'} {bar:g}"
    verdict = "" if bar is None else "ok" if (value < bar if lower else value > bar) else "MISSED"
    click.echo(LINE.format(what, f"{value:.3f}", limit, verdict))


if __name__ == "__main__":
    main()
