"""Averages a whole feature map the way that onnxruntime does fastest."""

from typing import ClassVar

import numpy as np
import onnx

from pfld_edge_convert.passes.base import GraphPass
from pfld_edge_convert.passes.graph_index import GraphIndex, attribute, onnx_opset, spatially_unpadded

__all__ = ["PoolToMean"]


class PoolToMean(GraphPass):
    """Replaces an average over the whole map by ReduceMean.

    onnxruntime's pooling kernels walk the map pixel by pixel, its reduction is vectorized: measured on 64 x 56 x 56,
    one thread, 37 us against 54 us for AveragePool and for GlobalAveragePool; 230 us against 730 us for eight faces.

    Rewrite rules:
        - ``GlobalAveragePool(x)`` of a rank-4 tensor, or ``AveragePool(x)`` with a kernel as large as ``x`` and no
          padding, becomes ``ReduceMean(x, axes=[2, 3], keepdims=1)``.
        - ``Flatten`` of such a mean that nothing else reads is folded in: ``keepdims=0``.
    """

    name: ClassVar[str] = "pool-to-mean"

    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place; return what was done."""
        index, pools, flattens = GraphIndex(model), 0, 0
        for node in list(model.graph.node):
            if _averages_all(index, node):
                _to_mean(index, node, onnx_opset(model))
                pools += 1
            if _is_spatial_mean(index, node) and _fold_flatten(index, node):
                flattens += 1
                index = GraphIndex(model)
        return f"{pools} pools replaced, {flattens} Flatten folded" if pools or flattens else ""


def _averages_all(index: GraphIndex, node: onnx.NodeProto) -> bool:
    shape = index.shapes.get(node.input[0]) if node.input else None
    if shape is None or len(shape) != 4:
        return False
    if node.op_type == "GlobalAveragePool":
        return True
    kernel = tuple(attribute(node, "kernel_shape", []))
    return node.op_type == "AveragePool" and kernel == shape[2:] and spatially_unpadded(node)


def _to_mean(index: GraphIndex, node: onnx.NodeProto, opset: int) -> None:
    node.op_type = "ReduceMean"
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("keepdims", 1))
    if opset < 18:
        node.attribute.append(onnx.helper.make_attribute("axes", [2, 3]))
    elif "spatial_axes" in index.constants:
        node.input.append("spatial_axes")
    else:
        node.input.append(index.add_constant("spatial_axes", np.array([2, 3], np.int64)))


def _is_spatial_mean(index: GraphIndex, node: onnx.NodeProto) -> bool:
    if node.op_type != "ReduceMean" or not attribute(node, "keepdims", 1) or index.rank(node.input[0]) != 4:
        return False
    axes = index.constants.get(node.input[1]) if len(node.input) > 1 else attribute(node, "axes")
    return axes is not None and sorted(int(axis) % 4 for axis in axes) == [2, 3]


def _fold_flatten(index: GraphIndex, mean: onnx.NodeProto) -> bool:
    flatten = index.only_consumer(mean.output[0])
    if flatten is None or flatten.op_type != "Flatten" or attribute(flatten, "axis", 1) != 1:
        return False
    if not index.bypass(flatten):
        return False
    kept = [item for item in mean.attribute if item.name != "keepdims"]
    del mean.attribute[:]
    mean.attribute.extend([*kept, onnx.helper.make_attribute("keepdims", 0)])
    return True
