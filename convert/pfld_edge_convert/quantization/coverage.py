"""How much of a file onnxruntime really runs in 8 bits: read from the graph that it makes of the file."""

from dataclasses import dataclass
from pathlib import Path

import onnx

from pfld_edge_convert.optimized_graph import optimized_graph

__all__ = ["Coverage", "fusion_coverage"]

_INTEGER = frozenset({"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger"})
_FLOAT = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, slots=True)
class Coverage:
    """What runs.

    Attributes:
        integer: Names of the convolutions and matrix products in 8 bits.
        floating: Names of those in float.
        conversions: QuantizeLinear and DequantizeLinear nodes, each a pass over its tensor.
    """

    integer: tuple[str, ...]
    floating: tuple[str, ...]
    conversions: int

    @property
    def share(self) -> float:
        """Part of the convolutions and matrix products that run in 8 bits."""
        total = len(self.integer) + len(self.floating)
        return len(self.integer) / total if total else 0.0

    def describe(self) -> str:
        """One line."""
        total = len(self.integer) + len(self.floating)
        floating = f", in float: {', '.join(self.floating)}" if self.floating else ""
        return f"{len(self.integer)} of {total} convolutions and products run in 8 bits{floating}"


def fusion_coverage(model: onnx.ModelProto | Path) -> Coverage:
    """Open a model as a device would and look at what becomes of it.

    Args:
        model: In memory, or a file.

    Raises:
        ConvertError: onnxruntime refuses the model.
    """
    graph = optimized_graph(model).graph
    named = [(node.op_type, node.output[0]) for node in graph.node]
    return Coverage(
        tuple(name for kind, name in named if kind in _INTEGER),
        tuple(name for kind, name in named if kind in _FLOAT),
        sum(kind in _CONVERSIONS for kind, _ in named),
    )
