"""Which operator moves receptive fields how."""

from collections.abc import Callable, Mapping

import onnx

from pfld_edge_convert.passes.graph_index import GraphIndex
from pfld_edge_convert.receptive_field.layout_rules import along_axis, elementwise, permuted, reshape, sliced
from pfld_edge_convert.receptive_field.trace import FieldTrace, Sources
from pfld_edge_convert.receptive_field.window_rules import blocked, reduced, resized, transposed_windows, windowed

__all__ = ["RULES"]

Rule = Callable[[GraphIndex, onnx.NodeProto, Sources, int], FieldTrace | None]
"""From a node, the traces of its inputs and the place of an output to that output's trace; None where it can't tell."""


def _passes(names: str, rule: Rule) -> Mapping[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: Mapping[str, Rule] = {
    **_passes(
        "Relu LeakyRelu PRelu Clip Sigmoid HardSigmoid HardSwish Tanh Elu Selu Gelu Softplus Erf Exp Log Sqrt Abs Neg "
        "Floor Ceil Round Cast Identity Dropout BatchNormalization LRN QuickGelu Mish Celu "
        "Add Sub Mul Div Pow Max Min Sum Mean Where Equal Greater Less And Or Not Mod",
        elementwise,
    ),
    **_passes("Conv MaxPool AveragePool LpPool", windowed),
    "ConvTranspose": transposed_windows,
    **_passes(
        "GlobalAveragePool GlobalMaxPool GlobalLpPool ReduceMean ReduceMax ReduceMin ReduceSum ReduceProd ReduceL1 "
        "ReduceL2 ReduceSumSquare ReduceLogSumExp",
        reduced,
    ),
    **_passes("Concat Split Softmax LogSoftmax Gather", along_axis),
    **_passes("Reshape Flatten Squeeze Unsqueeze", reshape),
    "Slice": sliced,
    "Transpose": permuted,
    **_passes("Resize Upsample", resized),
    **_passes("SpaceToDepth DepthToSpace", blocked),
    **_passes(
        "Gemm MatMul",
        lambda index, node, sources, _: FieldTrace.collapsed(
            [source for source in sources if source], max(index.rank(node.output[0]), 0)
        ),
    ),
}
"""Operators whose effect is known."""
