"""The layers of a network as integer arithmetic sees them: a convolution and its Relu are one."""

from dataclasses import dataclass

import onnx

from pfld_edge_convert.passes.channel_map import is_dense, is_depthwise
from pfld_edge_convert.passes.graph_index import GraphIndex

__all__ = ["Layer", "integer_tensors", "shared_grids", "weighted_layers"]


@dataclass(frozen=True, slots=True)
class Layer:
    """A Conv or Gemm, with the Relu that alone reads it, if there is one.

    Attributes:
        node: The Conv or Gemm.
        relu: Its Relu, or None.
        name: Name of the layer for people: the node's, or its output's.
        depthwise: Whether each channel is convolved by itself.
    """

    node: onnx.NodeProto
    relu: onnx.NodeProto | None
    name: str
    depthwise: bool

    @property
    def source(self) -> str:
        """The tensor that the layer reads."""
        return str(self.node.input[0])

    @property
    def output(self) -> str:
        """The tensor that the layer makes: after the Relu, whose negative half an 8-bit grid need not hold."""
        return str((self.relu or self.node).output[0])


def weighted_layers(index: GraphIndex) -> list[Layer]:
    """All Conv and Gemm with constant weights, first to last."""
    layers = []
    for node in index.graph.node:
        if not (is_depthwise(index, node) or is_dense(index, node)):
            continue
        reader = index.only_consumer(node.output[0])
        relu = reader if reader is not None and reader.op_type == "Relu" else None
        layers.append(Layer(node, relu, node.name or node.output[0], is_depthwise(index, node)))
    return layers


def integer_tensors(index: GraphIndex, layers: list[Layer]) -> list[str]:
    """Tensors that need a grid of their own: what layers, additions and means make."""
    made = [layer.output for layer in layers if layer.output not in index.outputs]
    made += [node.output[0] for node in index.graph.node if node.op_type in ("Add", "GlobalAveragePool")]
    return made


def shared_grids(index: GraphIndex) -> list[list[str]]:
    """Tensors that must share a grid so that concatenating their maps copies bytes: each Concat's inputs and output.

    Concatenations of pooled features (rank 2) are not among them: the Gemm that reads them can have the scales of
    their columns in its weights.
    """
    groups: list[set[str]] = []
    for node in index.graph.node:
        if node.op_type == "Concat" and index.rank(node.output[0]) == 4:
            group = {*node.input, node.output[0]}
            touching = [other for other in groups if other & group]
            groups = [other for other in groups if not other & group] + [group.union(*touching)]
    return [sorted(group) for group in groups]
