"""The float network whose shapes are those of a quantized one."""

import onnx

__all__ = ["float_twin"]

# How each quantized operator of onnxruntime and of QOperator files reads as a float one: its name, and which of its
# inputs are tensors (the others are scales and zero points). None: every third from the third on.
_FLOAT_TWINS: dict[str, tuple[str, tuple[int, ...] | None]] = {
    "QLinearConv": ("Conv", (0, 3, 8)),
    "QLinearMatMul": ("MatMul", (0, 3)),
    "QGemm": ("Gemm", (0, 3, 6)),
    "ConvInteger": ("Conv", (0, 1)),
    "MatMulInteger": ("MatMul", (0, 1)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearConcat": ("Concat", None),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearReduceMean": ("ReduceMean", (0,)),
    "QLinearLeakyRelu": ("LeakyRelu", (0,)),
    "QLinearSigmoid": ("Sigmoid", (0,)),
    "QuantizeLinear": ("Identity", (0,)),
    "DequantizeLinear": ("Identity", (0,)),
    "FusedConv": ("Conv", (0, 1, 2)),
    "FusedGemm": ("Gemm", (0, 1, 2)),
}


def float_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with every quantized operator replaced by the float one whose shapes are the same.

    Node i of the copy stands for node i of the model.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for node in twin.graph.node:
        if node.op_type not in _FLOAT_TWINS:
            continue
        node_type, positions = _FLOAT_TWINS[node.op_type]
        chosen = range(2, len(node.input), 3) if positions is None else positions
        inputs = [node.input[position] for position in chosen if position < len(node.input)]
        if node_type == "Identity":
            del node.attribute[:]
        node.op_type, node.domain = node_type, ""
        del node.input[:]
        node.input.extend(inputs)
    return twin
