"""How much memory and time a large set takes: synthetic faces in tar shards through `pfld-edge evaluate`.

    python benchmarks/large_sets.py [--faces 100000] [--workers 2] [--model MODEL]... [--folder FOLDER]

The faces are the two bundled portraits, moved and scaled at random, as JPEGs of 128 x 128 pixels. Memory is resident
memory from /proc (Linux), looked at ten times a second: of the process that was started, of its workers, and of all
together at the worst moment. Pages that processes share count once for each, so the sum errs upwards.
"""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import click
import cv2
import numpy as np

from pfld_edge_calib import portraits, read_photo
from pfld_edge_runtime import BUNDLED_MODEL

SHARD = 5000
SIDE = 128
BAR = 400.0
"""Megabytes that 100,000 faces may take, all processes together."""


@click.command()
@click.option("--faces", default=100_000, show_default=True, help="How many.")
@click.option("--workers", default=2, show_default=True, help="Processes.")
@click.option("--model", "models", multiple=True, help="What to evaluate; the bundled model if left out.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keeps the shards for the next time.")
def main(faces: int, workers: int, models: tuple[str, ...], folder: Path | None) -> None:
    """Print the figures of docs/large-sets.md; exits with 1 where 100,000 faces take more than 400 MB."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else folder
        write_shards(place, faces)
        arguments = [*(models or [str(BUNDLED_MODEL)]), "--data", str(place), "--workers", str(workers)]
        command = [sys.executable, "-m", "pfld_edge", "evaluate", *arguments]
        largest, start = np.zeros(3), time.perf_counter()  # of the process, of a worker, of all together
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603 - our own program
            while process.poll() is None:
                sizes = [resident(number) for number in family(process.pid)]
                largest = np.maximum(largest, [sizes[0], max(sizes[1:], default=0.0), sum(sizes)])
                time.sleep(0.1)
        seconds = time.perf_counter() - start
    click.echo(f"{faces} faces in {seconds:.0f} s, {faces / seconds:.0f} a second, {workers} workers")
    click.echo("resident, MB: parent {:.0f}, worker {:.0f}, all {:.0f}".format(*largest))
    sys.exit(process.returncode or int(largest[2] > BAR))


def write_shards(folder: Path, faces: int) -> None:
    """Write the set, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / f"faces-{(faces - 1) // SHARD:04}.tar").exists():
        return
    random = np.random.default_rng(0)
    known = [(read_photo(face.image), face) for face in portraits()]
    for start in range(0, faces, SHARD):
        # Under another name until it is whole, so that a set that was begun is not taken for one.
        partial = folder / f"faces-{start // SHARD:04}.partial"
        with tarfile.open(partial, "w") as tar:
            for number in range(start, min(start + SHARD, faces)):
                photo, face = known[number % len(known)]
                low, high = face.bbox_xyxy[:2], face.bbox_xyxy[2:]
                scale = SIDE / ((high - low).max() * random.uniform(1.3, 1.6))
                shift = SIDE / 2 - scale * (low + high) / 2 + random.uniform(-5, 5, 2)
                matrix = np.column_stack([np.eye(2) * scale, shift])
                picture = cv2.imencode(".jpg", cv2.warpAffine(photo, matrix, (SIDE, SIDE)))[1].tobytes()
                landmarks = np.round(np.asarray(face.landmarks) * scale + shift, 2).tolist()
                notes = {"landmarks": landmarks, "attributes": ["blur"] if number % 3 == 0 else []}
                add(tar, f"{number:06}.jpg", picture)
                add(tar, f"{number:06}.json", json.dumps(notes).encode())
        partial.rename(partial.with_suffix(".tar"))


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Put a file into a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def family(process: int) -> list[int]:
    """A process, those that it started, and those that they started."""
    started = " ".join(read(path) for path in Path(f"/proc/{process}/task").glob("*/children")).split()
    return [process] + [member for child in started for member in family(int(child))]


def resident(process: int) -> float:
    """Resident memory of a process in MB; 0 where it ended."""
    lines = read(Path(f"/proc/{process}/status")).splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def read(path: Path) -> str:
    """A file of /proc; empty where its process ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
