"""Passes for the features that a network's last product reads: products make them, each with scales of its own."""

from itertools import pairwise
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper

from pfld_edge_convert.passes.base import GraphIndex, GraphPass, attribute, become
from pfld_edge_convert.passes.channels import is_dense, pointwise_path

_FEWER_WEIGHTS = 25
"""An average becomes a convolution of at most a share of one in so many of the network's weights."""


class ConvolvedFeatures(GraphPass):
    """Gives features that a convolution makes of one pixel a product, which can write them in float.

    MobileNetV3's head is a convolution behind the average (Howard et al., arXiv 1905.02244, section 5.1). 8 bits for
    what it makes and for the hard-swish of that cost more than those of any other layer.

    Rewrite rule, where nothing else reads what lies between: ``Gemm(Flatten(f(Conv(x, w, b))))``, x of one pixel, f any
    number of operators of one input, becomes ``Gemm(f(Gemm(Flatten(x), w, b)))``.
    """

    tolerance: ClassVar[float] = 1e-5

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index, count = GraphIndex(model), 0
        for node in list(model.graph.node):
            flatten = index.producers.get(node.input[0]) if node.op_type == "Gemm" else None
            if flatten is None or flatten.op_type != "Flatten" or attribute(flatten, "axis", 1) != 1:
                continue
            path = pointwise_path(index, flatten.input[0])
            made = index.producers.get(path[-1]) if path and index.only_consumer(flatten.output[0]) else None
            if made is None or made.op_type != "Conv" or not is_dense(index, made):
                continue
            weight, bias = index.weights(made) or ((), ())
            sizes = [np.shape(weight)[2:], *(index.shapes.get(name, ())[2:] for name in (made.input[0], path[-1]))]
            if sizes == [(1, 1)] * 3 and index.bypass(flatten):
                flat = f"{path[-1]}_pixel"
                weight_name = index.add_constant(f"{flat}_w", np.reshape(weight, (len(weight), -1)))
                bias_name = index.add_constant(f"{flat}_b", np.asarray(bias))
                index.insert(made, helper.make_node("Flatten", [made.input[0]], [flat]))
                become(made, "Gemm", flat, weight_name, bias_name, transB=1)
                count += 1
        if count:
            model.graph.ClearField("value_info")
        return f"{count} convolutions" if count else ""


class SplitProducts(GraphPass):
    """Gives each source of features a product of its own, whose rows then have scales of their own.

    Rewrite rule, where nothing else reads the Concat: ``Gemm(Concat(a, b, ...), w, c)`` becomes
    ``Sum(Gemm(a, w_a, c), Gemm(b, w_b), ...)``, which is computed in float.
    """

    tolerance: ClassVar[float] = 1e-5

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index = GraphIndex(model)
        count = sum(_split(index, node) for node in list(model.graph.node) if node.op_type == "Gemm")
        return f"{count} products" if count else ""


def _split(index: GraphIndex, product: onnx.NodeProto) -> int:
    """Split one product; give the number of its parts, 0 where the rule doesn't fit."""
    concat, weights = index.producers.get(product.input[0]), index.weights(product)
    if concat is None or concat.op_type != "Concat" or attribute(concat, "axis") not in (1, -1):
        return 0
    shapes = [index.shapes.get(name, ()) for name in concat.input]
    widths = [shape[1] for shape in shapes if len(shape) == 2 and isinstance(shape[1], int)]
    alone = index.only_consumer(concat.output[0]) is not None
    if weights is None or not alone or not 2 <= len(shapes) == len(widths):
        return 0
    # Exporters count tensors: a "view_1" often is there already.
    parts = [f"{product.output[0]}.part{place}" for place in range(len(widths))]
    for part, name, (start, end) in zip(parts, concat.input, pairwise(np.cumsum([0, *widths])), strict=True):
        constants = [index.add_constant(f"{part}_w", weights[0][:, start:end])]
        constants += [] if start else [index.add_constant(f"{part}_b", weights[1])]
        index.insert(product, helper.make_node("Gemm", [name, *constants], [part], transB=1))
    become(product, "Sum", *parts)
    return len(widths)


class AveragesAsConvolutions(GraphPass):
    """Lets averages that a product reads have a scale for each channel.

    The channels of an average have the scales of the map that it averages, on whose grid most of them move by a few
    steps: of 144 channels of pfld-ghostone, half reach less than an eighth. `EqualizeChannels` scales what a
    convolution makes.

    Rewrite rule, where only ``Gemm(Flatten(y))`` reads y: ``GlobalAveragePool(x)`` of C channels of H x W pixels
    becomes a depthwise ``Conv(x, 1 / (H * W))`` without padding. Not where the C * H * W weights are more than a
    twenty-fifth of the network's.
    """

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
