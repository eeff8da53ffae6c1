"""Measures the runtime against its bars: crop, batch, import, memory.

    python benchmarks/runtime.py speed
    python benchmarks/runtime.py memory

`speed` times the calls that it compares in turns and counts the processor time of the one thread that works. Models are
timed against each other by `pfld-edge bench`.
"""

import json
import os
import subprocess
import sys
from statistics import median

import click
import cv2
import numpy as np

from harness import medians
from pfld_edge_runtime import FaceLandmarker, crop_faces, crop_windows

FACE = 300
LINE = "  {:52} {:>12} {:>12}  {}"
# Runs in the fresh process: argv holds the number of calls. Linux alone tells the memory that is resident now.
MEMORY_SCRIPT = """
import json, resource, sys, time
import numpy as np
from pfld_edge_runtime import FaceLandmarker

def resident():
    try:
        return int(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0]) / 1024
    except OSError:
        return float("nan")

frame = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
landmarker = FaceLandmarker()
landmarker(frame, [[800, 300, 1100, 600]])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)
found = {"after one frame": resident(), "peak": peak}
landmarker(frame, [[60 * i, 300, 60 * i + 300, 600] for i in range(16)])
found["after 16 faces"] = resident()
for _ in range(1000):
    landmarker(frame, [[800, 300, 820, 320]])
before, start = resident(), time.perf_counter()
for _ in range(int(sys.argv[1])):
    landmarker(frame, [[800, 300, 820, 320]])
found |= {"seconds": time.perf_counter() - start, "growth": resident() - before}
print(json.dumps(found))
"""
IMPORT_SCRIPT = (
    "import time, onnxruntime; t = time.thread_time(); from pfld_edge_runtime import FaceLandmarker; "
    "print(time.thread_time() - t)"
)
FIRST_SCRIPT = (
    "import time; t = time.process_time(); import numpy; from pfld_edge_runtime import FaceLandmarker; "
    "FaceLandmarker()(numpy.zeros((99, 99, 3), numpy.uint8), [[9, 9, 90, 90]]); print(time.process_time() - t)"
)


@click.group()
def main() -> None:
    """Measure speed and memory of the runtime."""


@main.command()
@click.option("--rounds", type=click.IntRange(1), default=400, show_default=True, help="Timed calls of each.")
@click.option("--starts", type=click.IntRange(1), default=9, show_default=True, help="Fresh processes for the import.")
def speed(rounds: int, starts: int) -> None:
    """Print each figure with its bar: 0.25 ms, 1.3 times, 40 ms, 150 ms."""
    cv2.setNumThreads(1)
    # An open session also puts the heap into the state that applications have: pages stay with the process.
    landmarker = FaceLandmarker()
    contract = landmarker.contract
    frame = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    click.echo(LINE.format("one thread, bundled model, 1080p frame", "measured", "bar", ""))

    # Boxes to crop to landmarks in the frame, without the network, against OpenCV's resize alone.
    box, size = [[800, 300, 800 + FACE, 300 + FACE]], contract.input_size
    points = np.random.default_rng(1).random((1, contract.landmarks.num_landmarks, 2), np.float32)
    (x, y), side = crop_windows(box, contract.crop.margin).corners[0].tolist(), int(FACE * contract.crop.margin)

    def ours() -> object:
        windows = crop_windows(box, contract.crop.margin)
        crop_faces(frame, windows, size, swap_channels=contract.color_order == "bgr")
        return windows.to_image(points)

    def opencv() -> object:
        return cv2.resize(frame[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_LINEAR)

    found = medians({"ours": ours, "cv2": opencv}, rounds)
    report(f"crop, resize, map back, {FACE} px face, ms", found["ours"], 0.25)
    report("  cv2.resize alone, ms", found["cv2"])
    report("  ours as a multiple of cv2.resize", found["ours"] / found["cv2"])

    boxes = [[150 * i, 300, 150 * i + FACE, 300 + FACE] for i in range(8)]
    calls = {"8": lambda: landmarker(frame, boxes), "1": lambda: [landmarker(frame, [box]) for box in boxes]}
    found = medians(calls, max(1, rounds // 4))
    report(f"one call of 1 face of {FACE} px, ms", found["1"] / 8)
    report("one call of 8 faces, ms", found["8"])
    report("8 calls over one call of 8 faces", found["1"] / found["8"], 1.3, lower=False)

    for what, script, bar in (
        ("import FaceLandmarker beyond onnxruntime, ms", IMPORT_SCRIPT, 40),
        ("from importing numpy to the first landmarks, ms", FIRST_SCRIPT, 150),
    ):
        report(what, 1000 * median(float(fresh(script)) for _ in range(starts)), bar)


@main.command()
@click.option(
    "--calls", type=click.IntRange(1), default=100_000, show_default=True, help="Calls that may keep nothing."
)
def memory(calls: int) -> None:
    """Print each figure with its bar: 110 MB after a 1080p frame, 1 MB of growth."""
    found = json.loads(fresh(MEMORY_SCRIPT, str(calls)))
    click.echo(LINE.format("memory of a process with the bundled model", "measured", "bar", ""))
    report("resident after one face of a 1080p frame, MB", found["after one frame"], 110, digits=1)
    report("  at its highest until then, MB", found["peak"], 110, digits=1)
    report("  after 16 faces in one call, MB", found["after 16 faces"], digits=1)
    report(f"growth over {calls:,} calls of one 20 px face, MB", found["growth"], 1, digits=1)
    report("  seconds for them", found["seconds"], digits=1)


def fresh(script: str, *arguments: str) -> str:
    """What a script prints in a fresh process, which reads and writes bytecode, as an installed package has it."""
    command, environment = [sys.executable, "-c", script, *arguments], {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout  # noqa: S603


def report(what: str, value: float, bar: float | None = None, *, lower: bool = True, digits: int = 3) -> None:
    """Print a figure, its bar, and whether it holds."""
    limit = "" if bar is None else f"{'<' if lower else '>'} {bar:g}"
    verdict = "" if bar is None else "ok" if (value < bar if lower else value > bar) else "MISSED"
    click.echo(LINE.format(what, f"{value:.{digits}f}", limit, verdict))


if __name__ == "__main__":
    main()
