"""Measures the runtime's memory against its bars, in fresh processes: after one frame, and after very many calls."""

import json
import subprocess
import sys

import click

LINE = "  {:52} {:>12} {:>12}  {}"

# Runs in the fresh process: argv holds the number of calls. Linux alone tells the memory that is resident now.
SCRIPT = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from pfld_edge_runtime import FaceLandmarker

def resident():
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    return int(status.read_text().partition("VmRSS:")[2].split()[0]) / 1024

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
found["seconds"] = time.perf_counter() - start
found["growth"] = resident() - before
print(json.dumps(found))
"""


@click.command()
@click.option(
    "--calls", type=click.IntRange(1), default=100_000, show_default=True, help="Calls that may keep nothing."
)
def main(calls: int) -> None:
    """Print each figure with its bar: 110 MB after a 1080p frame, 1 MB of growth."""
    command = [sys.executable, "-c", SCRIPT, str(calls)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603
    click.echo(LINE.format("memory of a process with the bundled model", "measured", "bar", ""))
    report("resident after one face of a 1080p frame, MB", found["after one frame"], 110)
    report("  at its highest until then, MB", found["peak"], 110)
    report("  after 16 faces in one call, MB", found["after 16 faces"])
    report(f"growth over {calls:,} calls of one 20 px face, MB", found["growth"], 1)
    report("  seconds for them", found["seconds"])


def report(what: str, value: float, bar: float | None = None) -> None:
    """Print a figure, its bar, and whether it holds."""
    verdict = "" if bar is None else "ok" if value < bar else "MISSED"
    click.echo(LINE.format(what, f"{value:.1f}", "" if bar is None else f"< {bar:g}", verdict))


if __name__ == "__main__":
    main()
