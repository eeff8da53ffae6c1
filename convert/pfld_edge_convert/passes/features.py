"""Passes for the features that a network's last product reads: a product for each source, a scale for each channel."""

from itertools import pairwise
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper

from pfld_edge_convert.passes.base import GraphIndex, GraphPass, become
from pfld_edge_convert.passes.channels import channel_weights, is_dense

_FEWER_WEIGHTS = 25
"""An average becomes a convolution of at most a share of one in so many of the network's weights."""


class SplitLastProduct(GraphPass):
    """Gives each source of features a product of its own, whose rows then have scales of their own.

    Rewrite rule, for the last node with weights: ``Gemm(Concat(a, b, ...), w, c)`` becomes
    ``Gemm(a, w_a, c) + Gemm(b, w_b) + ...``, summed in float.
    """

    name: ClassVar[str] = "split-last-product"
    tolerance: ClassVar[float] = 1e-5

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index = GraphIndex(model)
        product = next((node for node in reversed(model.graph.node) if channel_weights(index, node)), None)
        if product is None or product.op_type != "Gemm" or not is_dense(index, product):
            return ""
        concat, weights = index.producers.get(product.input[0]), index.weights(product)
        if concat is None or concat.op_type != "Concat" or index.only_consumer(product.input[0]) is None:
            return ""
        widths = [index.shapes.get(name, ())[-1:] for name in concat.input]
        ends = np.cumsum([0, *(width[0] for width in widths if width and isinstance(width[0], int))])
        if weights is None or len(widths) < 2 or len(ends) != len(widths) + 1 or ends[-1] != weights[0].shape[1]:
            return ""
        output, total = product.output[0], ""
        for place, (name, (start, end)) in enumerate(zip(concat.input, pairwise(ends), strict=True)):
            part = f"{output}_{place}"
            constants = [index.add_constant(f"{part}_w", weights[0][:, start:end])]
            constants += [] if place else [index.add_constant(f"{part}_b", weights[1])]
            index.insert(product, helper.make_node("Gemm", [name, *constants], [part], transB=1))
            if place:
                whole = output if place == len(widths) - 1 else f"{part}_sum"
                index.insert(product, helper.make_node("Add", [total, part], [whole]))
                part = whole
            total = part
        model.graph.node.remove(product)
        return f"{len(widths)} products"


class AveragesAsConvolutions(GraphPass):
    """Lets averages that a product reads have a scale for each channel.

    The channels of an average have the scales of the map that it averages, on whose grid most of them move by a few
    steps: of 144 channels of pfld-ghostone, half reach less than an eighth. `EqualizeChannels` scales what a convolution
    makes.

    Rewrite rule, where only ``Gemm(Flatten(y))`` reads y: ``GlobalAveragePool(x)`` of C channels of H x W pixels becomes
    a depthwise ``Conv(x, 1 / (H * W))`` without padding. Not where the C * H * W weights are more than a twenty-fifth
    of the network's.
    """

    name: ClassVar[str] = "averages-as-convolutions"
    tolerance: ClassVar[float] = 1e-5

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index, count = GraphIndex(model), 0
        most = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer) / _FEWER_WEIGHTS
        for node in model.graph.node:
            flatten = index.only_consumer(node.output[0]) if node.op_type == "GlobalAveragePool" else None
            reader = index.only_consumer(flatten.output[0]) if flatten and flatten.op_type == "Flatten" else None
            sizes = [size for size in index.shapes.get(node.input[0], ())[1:] if isinstance(size, int)]
            if reader is None or reader.op_type != "Gemm" or len(sizes) < 3 or np.prod(sizes) > most:
                continue
            channels, height, width = sizes
            kernel = np.full((channels, 1, height, width), 1 / (height * width), np.float32)
            weight = index.add_constant(f"{node.output[0]}_w", kernel)
            become(node, "Conv", node.input[0], weight, kernel_shape=[height, width], group=channels)
            count += 1
        return f"{count} averages" if count else ""
