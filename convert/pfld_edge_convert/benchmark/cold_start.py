"""What a model costs before its first result: fresh processes that open it and run it once."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from pfld_edge_convert.benchmark.subject import Subject
from pfld_edge_convert.errors import BenchmarkError

__all__ = ["ColdStart", "cold_starts"]

_LIMIT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Medians over fresh processes.

    Attributes:
        cold_ms: From the start of the process to its first result, Python and onnxruntime included.
        import_ms: Of that, importing numpy, onnxruntime and the runtime.
        load_ms: Of that, opening the model.
        first_ms: Of that, the first call.
        resident_mb: Memory of the process with the first result (10^6 bytes); None where the system doesn't tell.
        model_mb: Of that, what came with opening and running the model.
    """

    cold_ms: float
    import_ms: float
    load_ms: float
    first_ms: float
    resident_mb: float | None
    model_mb: float | None


def cold_starts(
    subjects: Sequence[Subject],
    starts: int,
    *,
    threads: int,
    batch: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[ColdStart]:
    """Start fresh processes, the subjects in turn.

    Args:
        subjects: What is opened.
        starts: Processes for each, at least 1.
        threads: onnxruntime's threads.
        batch: Faces in the first call.
        advance: Told 1 after each process.

    Raises:
        BenchmarkError: A process failed.
    """
    found: list[list[dict[str, float | None]]] = [[] for _ in subjects]
    with tempfile.TemporaryDirectory(prefix="pfld-edge-") as folder:
        commands = [
            _command(subject, threads, batch, Path(folder, str(place))) for place, subject in enumerate(subjects)
        ]
        for _ in range(starts):
            for subject, command, rows in zip(subjects, commands, found, strict=True):
                rows.append(_start(subject, command))
                advance(1)
    return [_summed_up(rows) for rows in found]


def _command(subject: Subject, threads: int, batch: int, folder: Path) -> list[str]:
    folder.mkdir()
    files = {}
    for place, (name, values) in enumerate(subject.feed(batch).items()):
        files[name] = str(folder / f"{place}.npy")
        np.save(files[name], values)
    module = "pfld_edge_convert.benchmark.first_result"
    return [sys.executable, "-m", module, str(subject.path), str(threads), json.dumps(files)]


def _start(subject: Subject, command: list[str]) -> dict[str, float | None]:
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            line = process.stdout.readline() if process.stdout else ""
            cold = time.perf_counter() - start
            _, errors = process.communicate(timeout=_LIMIT_SECONDS)
        except BaseException:
            process.kill()
            raise
    if process.returncode or not line:
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        raise BenchmarkError(f"{subject.path}: a fresh process failed to run it: {last[:200]}")
    record: dict[str, float | None] = json.loads(line)
    return {**record, "cold_ms": 1000 * cold}


def _summed_up(rows: list[dict[str, float | None]]) -> ColdStart:
    def middle(name: str) -> float:
        return median(row[name] or 0.0 for row in rows)

    known = all(row["resident"] is not None for row in rows)
    resident = middle("resident") / 1e6 if known else None
    return ColdStart(
        cold_ms=middle("cold_ms"),
        import_ms=middle("import_ms"),
        load_ms=middle("load_ms"),
        first_ms=middle("first_ms"),
        resident_mb=resident,
        model_mb=None if resident is None else resident - middle("resident_before") / 1e6,
    )
