"""Makes a network read grey levels instead of normalized pixels."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx

from pfld_edge_convert.passes.base import GraphPass
from pfld_edge_convert.passes.channel_map import is_dense
from pfld_edge_convert.passes.graph_index import GraphIndex

__all__ = ["CENTER", "FoldNormalization"]

CENTER = 128
"""Grey level that stands for zero: the zero point of an unsigned byte."""


class FoldNormalization(GraphPass):
    """Folds ``(pixel - mean) / scale`` into the first convolutions, so that the input is ``pixel - 128``.

    Rewrite rule, for every Conv that reads the graph's input, where nothing else reads it:
        - ``Conv((p - mean) / scale, w, b)`` becomes ``Conv(p - 128, w / scale, b + sum(w * (128 - mean) / scale))``.

    Exact inside the picture. Where the convolution pads, its zeros were the grey level `mean` and become 128: for the
    usual mean of 127.5 half a grey level, in the outermost row of taps.

    The pass changes what the input means, so that `run_passes` can't prove it on one sample; `applies` says whether
    the rule fits, and its test compares on translated inputs.
    """

    name: ClassVar[str] = "fold-normalization"

    def __init__(self, mean: Sequence[float], scale: Sequence[float]) -> None:
        """Say how pixels are normalized.

        Args:
            mean: Three grey levels in the network's channel order.
            scale: Three divisors.
        """
        self._mean, self._scale = np.asarray(mean, np.float64), np.asarray(scale, np.float64)

    def applies(self, model: onnx.ModelProto) -> bool:
        """Whether only convolutions of one group read the input."""
        index = GraphIndex(model)
        readers = index.consumers[model.graph.input[0].name]
        return bool(readers) and all(node.op_type == "Conv" and is_dense(index, node) for node in readers)

    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place."""
        if not self.applies(model):
            return ""
        index = GraphIndex(model)
        readers = index.consumers[model.graph.input[0].name]
        for node in readers:
            weights = index.weights(node)
            if weights is not None:
                weight, bias = (values.astype(np.float64) for values in weights)
                weight = weight / self._scale.reshape(1, -1, 1, 1)
                shift = (weight.sum(axis=(2, 3)) * (CENTER - self._mean)).sum(axis=1)
                index.set_weights(node, weight.astype(np.float32), (bias + shift).astype(np.float32))
        return f"{len(readers)} convolutions read pixels"
