"""Where a model's time goes: operators by onnxruntime's profile, and the time to a first result in a new process."""

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

if TYPE_CHECKING:
    from pfld_edge_convert.benchmark.bench import Subject

_RUNS, _WARM_UP = 20, 5
_SUFFIX = "_kernel_time"
_LIMIT_SECONDS = 120

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NodeTime:
    """A node of the graph as it runs.

    Attributes:
        name: As onnxruntime calls it.
        op_type: Its operator.
        milliseconds: Median of one run.
        share: Of the whole call.
    """

    name: str
    op_type: str
    milliseconds: float
    share: float


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """All nodes of one operator.

    Attributes:
        op_type: The operator.
        nodes: How many.
        milliseconds: Sum of their medians.
        share: Of the whole call.
    """

    op_type: str
    nodes: int
    milliseconds: float
    share: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of one call goes.

    Attributes:
        milliseconds: Median of a profiled call; profiling itself takes some of it.
        operators: The most expensive first.
        nodes: The most expensive first.
        between: Share of the call that is spent in no node.
        activation_bytes: What all nodes read of each other and write, in one call; constants don't count.
    """

    milliseconds: float
    operators: tuple[OperatorTime, ...]
    nodes: tuple[NodeTime, ...]
    between: float
    activation_bytes: int


def take_profile(subject: "Subject", threads: int, batch: int) -> Profile:
    """Run a batch some times under onnxruntime's profiler.

    Args:
        subject: What is run; a batch that takes several calls is profiled for one of them.
        threads: onnxruntime's threads.
        batch: Faces.
    """
    feed, options = subject.feed(batch), onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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
    runs = [event["dur"] / 1000 for event in events if event.get("cat") == "Session" and event["name"] == "model_run"]
    call = median(_warm(runs)) if runs else 0.0
    nodes: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            nodes[str(event["args"].get("node_index", event["name"]))].append(event)
    timed = sorted((_node(rows, call) for rows in nodes.values()), key=lambda node: -node.milliseconds)
    moved = sum(
        int(rows[-1]["args"].get(size, 0)) for rows in nodes.values() for size in ("activation_size", "output_size")
    )
    return Profile(
        call,
        _by_operator(timed, call),
        tuple(timed),
        max(0.0, 1 - sum(node.share for node in timed)),
        moved,
    )


def _warm(rows: list[float]) -> list[float]:
    return rows[_WARM_UP:] or rows


def _node(rows: list[Event], call: float) -> NodeTime:
    taken = median(_warm([row["dur"] / 1000 for row in rows]))
    name, op_type = rows[0]["name"].removesuffix(_SUFFIX), str(rows[0]["args"].get("op_name", "?"))
    return NodeTime(name, op_type, taken, taken / call if call else 0.0)


def _by_operator(nodes: Sequence[NodeTime], call: float) -> tuple[OperatorTime, ...]:
    groups: dict[str, list[float]] = defaultdict(list)
    for node in nodes:
        groups[node.op_type].append(node.milliseconds)
    found = [
        OperatorTime(op_type, len(times), sum(times), sum(times) / call if call else 0.0)
        for op_type, times in groups.items()
    ]
    return tuple(sorted(found, key=lambda item: -item.milliseconds))


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
    subjects: Sequence["Subject"],
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


def _command(subject: "Subject", threads: int, batch: int, folder: Path) -> list[str]:
    folder.mkdir()
    files = {}
    for place, (name, values) in enumerate(subject.feed(batch).items()):
        files[name] = str(folder / f"{place}.npy")
        np.save(files[name], values)
    module = "pfld_edge_convert.benchmark.first_result"
    return [sys.executable, "-m", module, str(subject.path), str(threads), json.dumps(files)]


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
