"""What onnxruntime makes of a file's nodes: which of them run as one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from pfld_edge_convert.optimized_graph import optimized_graph

__all__ = ["FusedPattern", "Fusion", "fusion_of"]


@dataclass(frozen=True, slots=True)
class FusedPattern:
    """Nodes that run as one.

    Attributes:
        operators: Of the file's nodes, in order.
        runs_as: Operator of the node that runs in their place.
        count: How often.
    """

    operators: tuple[str, ...]
    runs_as: str
    count: int

    def describe(self) -> str:
        """One line, such as ``26 x Conv + Relu -> FusedConv``."""
        return f"{self.count} x {' + '.join(self.operators)} -> {self.runs_as}"


@dataclass(frozen=True, slots=True)
class Fusion:
    """How a file runs.

    Attributes:
        runs_as: For each node of the file, ``Constant`` aside: the operator that makes its output, the name of the
            output that it is part of (``in NAME``), or ``gone``.
        patterns: The most frequent first.
        running: Operators of the graph as it runs on this processor, layout changes included, and how many.
    """

    runs_as: tuple[str, ...]
    patterns: tuple[FusedPattern, ...]
    running: dict[str, int]

    def facts(self) -> tuple[str, ...]:
        """Say what fuses and what runs, a line each."""
        runs = ", ".join(f"{count} {operator}" for operator, count in self.running.items())
        fused = "; ".join(pattern.describe() for pattern in self.patterns) or "nothing"
        return f"onnxruntime fuses: {fused}", f"onnxruntime runs here: {runs}"


def fusion_of(model: onnx.ModelProto) -> Fusion:
    """Open a model and compare the graph that runs with the file's.

    Raises:
        ConvertError: onnxruntime refuses the model.
    """
    # Without changes of layout tensors keep their names, so that nodes can be told apart.
    kept = {name: node.op_type for node in optimized_graph(model, layout=False).graph.node for name in node.output}
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    readers: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(place)
    ends = _ends(nodes, kept, readers)
    groups: dict[int, list[int]] = {}
    for place, end in enumerate(ends):
        if end is not None:
            groups.setdefault(end, []).append(place)
    counts = Counter(
        (tuple(nodes[place].op_type for place in places), _maker(nodes[end], kept))
        for end, places in groups.items()
        if len(places) > 1
    )
    running = Counter(node.op_type for node in optimized_graph(model).graph.node)
    return Fusion(
        tuple(_fate(place, end, nodes, kept) for place, end in enumerate(ends)),
        tuple(FusedPattern(operators, runs_as, count) for (operators, runs_as), count in counts.most_common()),
        dict(running.most_common()),
    )


def _ends(nodes: Sequence[onnx.NodeProto], kept: dict[str, str], readers: dict[str, list[int]]) -> list[int | None]:
    """For each node the first one at or behind it whose output is still made; None where there is none."""
    ends: list[int | None] = [None] * len(nodes)
    for place in reversed(range(len(nodes))):
        if any(name in kept for name in nodes[place].output):
            ends[place] = place
            continue
        behind = [ends[reader] for name in nodes[place].output for reader in readers.get(name, [])]
        ends[place] = min((end for end in behind if end is not None), default=None)
    return ends


def _maker(node: onnx.NodeProto, kept: dict[str, str]) -> str:
    return next(kept[name] for name in node.output if name in kept)


def _fate(place: int, end: int | None, nodes: Sequence[onnx.NodeProto], kept: dict[str, str]) -> str:
    if end is None:
        return "gone"
    return _maker(nodes[end], kept) if end == place else f"in {nodes[end].name or nodes[end].output[0]}"
