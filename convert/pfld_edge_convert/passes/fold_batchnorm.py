"""Folds batch normalization into the convolution before it."""

from typing import ClassVar

import numpy as np
import onnx

from pfld_edge_convert.passes.base import GraphPass
from pfld_edge_convert.passes.graph_index import GraphIndex, attribute

__all__ = ["FoldBatchNorm"]


class FoldBatchNorm(GraphPass):
    """Multiplies a BatchNormalization's scale into the weights before it (Jacob et al. 2018, section 3.2).

    Rewrite rule:
        - ``BatchNormalization(Conv(x, w, b))`` or of ``Gemm``, both with constants only, where nothing else reads the
          convolution's output, becomes ``Conv(x, w * s, (b - mean) * s + beta)``, with
          ``s = gamma / sqrt(var + epsilon)``, computed in float64.
    """

    name: ClassVar[str] = "fold-batchnorm"
    # Sums are scaled in another order: relative 1e-6 of outputs that are fractions of a crop.
    tolerance: ClassVar[float] = 1e-5

    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place; return what was done."""
        index, count = GraphIndex(model), 0
        for node in list(model.graph.node):
            if node.op_type == "BatchNormalization" and _fold(index, node):
                count, index = count + 1, GraphIndex(model)
        return f"{count} BatchNormalization folded" if count else ""


def _fold(index: GraphIndex, norm: onnx.NodeProto) -> bool:
    source = index.producers.get(norm.input[0])
    if source is None or source.op_type not in ("Conv", "Gemm") or index.only_consumer(source.output[0]) is None:
        return False
    if source.op_type == "Gemm" and (attribute(source, "alpha", 1.0), attribute(source, "beta", 1.0)) != (1.0, 1.0):
        return False
    weights = index.weights(source)
    parameters = [index.constants.get(name) for name in norm.input[1:5]]
    if weights is None or any(value is None for value in parameters) or attribute(norm, "training_mode", 0):
        return False
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in parameters)
    factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    weight, bias = weights
    scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    index.set_weights(source, scaled.astype(weight.dtype), ((bias - mean) * factor + beta).astype(weight.dtype))
    return index.bypass(norm)
