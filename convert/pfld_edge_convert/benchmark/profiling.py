"""Where a model's time goes: operators by onnxruntime's profile, and the time to a first result in a new process.

docs/benchmarking.md explains the fields of the records.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from pfld_edge_convert.errors import BenchmarkError
from pfld_edge_runtime.session import session_options

if TYPE_CHECKING:
    from pfld_edge_convert.benchmark.bench import Subject

_RUNS, _WARM_UP = 20, 5
_SUFFIX = "_kernel_time"
_LIMIT_SECONDS = 120

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NodeTime:
    """Median time of a node of the graph as it runs, and its share of the whole call."""

    name: str
    op_type: str
    milliseconds: float
    share: float


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """Number of the nodes of one operator, the sum of their medians, and its share of the whole call."""

    op_type: str
    nodes: int
    milliseconds: float
    share: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of one call goes, the most expensive first; `between` is the share that is spent in no node.

    The activation bytes are what all nodes read of each other and write in one call; constants don't count.
    """

    milliseconds: float
    operators: tuple[OperatorTime, ...]
    nodes: tuple[NodeTime, ...]
    between: float
    activation_bytes: int


def take_profile(subject: "Subject", threads: int, batch: int) -> Profile:
    """Run a batch some times under onnxruntime's profiler; of a batch that takes several calls, one of them."""
    feed, options = subject.feed(batch), session_options(threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="pfld-edge-") as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(str(subject.path), options, providers=["CPUExecutionProvider"])
        for _ in range(_WARM_UP + _RUNS):
            session.run(None, feed)
        text = Path(session.end_profiling()).read_text(encoding="utf-8", errors="replace")
    return read_profile(json.loads(text))


def read_profile(events: Sequence[Event]) -> Profile:
    """Sum up the events of a profile; the first runs, as far as there are more than `_WARM_UP`, don't count."""
    call = _median([event for event in events if event.get("cat") == "Session" and event["name"] == "model_run"])
    rows: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            rows[str(event["args"].get("node_index", event["name"]))].append(event)
    nodes, operators, moved = [], defaultdict[str, list[float]](list), 0
    for runs in rows.values():
        name, arguments, taken = runs[0]["name"].removesuffix(_SUFFIX), runs[0]["args"], _median(runs)
        op_type = str(arguments.get("op_name", "?"))
        nodes.append(NodeTime(name, op_type, taken, taken / call if call else 0.0))
        operators[op_type].append(taken)
        moved += sum(int(runs[-1]["args"].get(size, 0)) for size in ("activation_size", "output_size"))
    summed = [
        OperatorTime(op_type, len(times), sum(times), sum(times) / call if call else 0.0)
        for op_type, times in operators.items()
    ]
    return Profile(
        call,
        tuple(sorted(summed, key=lambda item: -item.milliseconds)),
        tuple(sorted(nodes, key=lambda node: -node.milliseconds)),
        max(0.0, 1 - sum(node.share for node in nodes)),
        moved,
    )


def _median(events: Sequence[Event]) -> float:
    """Milliseconds; 0 where there are none."""
    times = [event["dur"] / 1000 for event in events]
    return float(median(times[_WARM_UP:] or times or [0.0]))


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Medians over fresh processes: time to the first result, its parts, and resident memory (10^6 bytes).

    None where the system doesn't tell the memory; `model_mb` is what came with opening and running the model.
    """

    cold_ms: float
    import_ms: float
    load_ms: float
    first_ms: float
    resident_mb: float | None
    model_mb: float | None


def cold_starts(
    subjects: Sequence["Subject"],
    starts: int,
    *,
    threads: int,
    batch: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[ColdStart]:
    """Start fresh processes, the subjects in turn; `advance` is told 1 after each. BenchmarkError where one failed."""
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


def _command(subject: "Subject", threads: int, batch: int, folder: Path) -> list[str]:
    folder.mkdir()
    feed = subject.feed(batch)
    files = {name: str(folder / f"{place}.npy") for place, name in enumerate(feed)}
    for name, file in files.items():
        np.save(file, feed[name])
    module = "pfld_edge_convert.benchmark.first_result"
    return [sys.executable, "-m", module, str(subject.path), str(threads), json.dumps(files), subject.device]


def _start(subject: "Subject", command: list[str]) -> dict[str, float | None]:
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
    return {**json.loads(line), "cold_ms": 1000 * cold}


def _summed_up(rows: list[dict[str, float | None]]) -> ColdStart:
    middle = {name: median(row[name] or 0.0 for row in rows) for name in rows[0]}
    resident, added = middle["resident"] / 1e6, (middle["resident"] - middle["resident_before"]) / 1e6
    memory = (None, None) if any(row["resident"] is None for row in rows) else (resident, added)
    return ColdStart(middle["cold_ms"], middle["import_ms"], middle["load_ms"], middle["first_ms"], *memory)
