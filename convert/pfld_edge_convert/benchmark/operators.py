"""Where a network's time goes, by onnxruntime's own profile."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime

from pfld_edge_convert.benchmark.subject import Subject

__all__ = ["NodeTime", "OperatorTime", "Profile", "read_profile", "take_profile"]

_RUNS, _WARM_UP = 20, 5
_SUFFIX = "_kernel_time"

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


def take_profile(subject: Subject, threads: int, batch: int) -> Profile:
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
