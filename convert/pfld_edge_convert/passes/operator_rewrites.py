"""Replaces operators by those that run fastest: BatchNormalization, means, covering convolutions, hard activations."""

from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.passes.base import (
    GraphIndex,
    GraphPass,
    attribute,
    become,
    drop_unused,
    is_spatial_mean,
    set_attribute,
    spatially_unpadded,
)
from pfld_edge_runtime.arrays import Float64Array


class FoldBatchNorm(GraphPass):
    """Multiplies a BatchNormalization's scale into the weights before it (Jacob et al. 2018, section 3.2).

    Rewrite rules:
        - ``BatchNormalization(Conv(x, w, b))`` or of ``Gemm``, both with constants only, where nothing else reads the
          convolution's output, becomes ``Conv(x, w * s, (b - mean) * s + beta)``, with
          ``s = gamma / sqrt(var + epsilon)``, computed in float64.
        - ``Add``, ``Sub``, ``Mul`` and ``Div`` of a map and one constant a channel do the same.
        - Behind anything else than such a layer, they become a 1x1 convolution of each channel.
    """

    # Sums are scaled in another order: relative 1e-6 of outputs that are fractions of a crop.
    tolerance: ClassVar[float] = 1e-5

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index, count = GraphIndex(model), 0
        for node in list(model.graph.node):
            found = _normalized(index, node) if node.op_type == "BatchNormalization" else _scaled(index, node)
            if found is not None and _fold_norm(index, node, *found):
                count += 1
        return f"{count} BatchNormalization and operations by channel folded" if count else ""


def _normalized(index: GraphIndex, norm: onnx.NodeProto) -> tuple[Float64Array, Float64Array] | None:
    """Factor and offset ``(C,)`` of a BatchNormalization."""
    parameters = [index.constants.get(name) for name in norm.input[1:5]]
    if any(value is None for value in parameters) or attribute(norm, "training_mode", 0):
        return None
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in parameters)
    factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    return factor, beta - mean * factor


def _scaled(index: GraphIndex, node: onnx.NodeProto) -> tuple[Float64Array, Float64Array] | None:
    """Factor and offset ``(C,)`` of an operation of a map and one constant a channel, made the second input."""
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    if node.op_type in ("Add", "Mul") and node.input[0] in index.constants:
        node.input[:] = [node.input[1], node.input[0]]
    constant, shape = index.constants.get(node.input[1]), index.shapes.get(node.input[0], ())
    # Single numbers belong to hard activations.
    if constant is None or len(shape) != 4 or constant.size < 2 or constant.shape[-3:] != (shape[1], 1, 1):
        return None
    values = constant.ravel().astype(np.float64)
    ones, zeros = np.ones_like(values), np.zeros_like(values)
    match node.op_type:
        case "Add" | "Sub":
            return ones, values if node.op_type == "Add" else -values
        case "Mul":
            return values, zeros
    return (ones / values, zeros) if values.all() else None


def _fold_norm(index: GraphIndex, norm: onnx.NodeProto, factor: Float64Array, offset: Float64Array) -> bool:
    source = index.producers.get(norm.input[0])
    is_layer = source is not None and source.op_type in ("Conv", "Gemm")
    weights = index.weights(source) if source is not None and is_layer else None
    if source is None or weights is None or index.only_consumer(source.output[0]) is None:
        return _as_convolution(index, norm, factor, offset)
    weight, bias = weights
    scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    index.set_weights(source, scaled.astype(weight.dtype), (bias * factor + offset).astype(weight.dtype))
    return index.bypass(norm)


def _as_convolution(index: GraphIndex, norm: onnx.NodeProto, factor: Float64Array, offset: Float64Array) -> bool:
    if index.rank(norm.input[0]) != 4:
        return False
    values = (factor.reshape(-1, 1, 1, 1), offset)
    constants = [index.add_constant(f"{norm.output[0]}_{len(v.shape)}", v.astype(np.float32)) for v in values]
    become(norm, "Conv", norm.input[0], *constants, group=len(factor), kernel_shape=[1, 1])
    return True


class MergeBranches(GraphPass):
    """Replaces a sum of convolutions by one (Ding et al., RepVGG, arXiv 2101.03697, section 3.3).

    Rewrite rule:
        - ``Add(Conv(x, v, a), Conv(x, w, b))``, of the same strides and centres, whose terms nothing else reads,
          becomes ``Conv(x, v + w, a + b)``. Smaller kernels get zeros all round, more groups zeros between them; not
          where that makes more weights than both have.
    """

    tolerance: ClassVar[float] = 1e-5

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index, count = GraphIndex(model), 0
        for add in [node for node in model.graph.node if node.op_type == "Add"]:
            terms = [index.producers.get(name) for name in add.input]
            alone = all(index.only_consumer(name) is not None for name in add.input)
            one, other = terms
            if alone and one is not None and other is not None and _merged(index, one, other):
                one.output[0] = add.output[0]
                index.producers[add.output[0]] = one
                model.graph.node.remove(other)
                model.graph.node.remove(add)
                count += 1
        return f"{count} sums of convolutions" if count else ""


def _merged(index: GraphIndex, one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    """Give the first convolution the weights of both."""
    pair = (one, other)
    if {node.op_type for node in pair} != {"Conv"} or one.input[0] != other.input[0]:
        return False
    weights = [index.weights(node) for node in pair]
    first, second = weights
    if first is None or second is None or not (first[0].ndim == second[0].ndim == 4):
        return False
    strides = {tuple(attribute(node, "strides", [1, 1])) for node in pair}
    centred = all(_is_centred(node, found[0].shape[2:]) for node, found in zip(pair, (first, second), strict=True))
    if len(strides) > 1 or not centred:
        return False
    own = [attribute(node, "group", 1) for node in pair]
    groups, kernel = min(own), np.maximum(first[0].shape[2:], second[0].shape[2:])
    if max(own) % groups:
        return False
    wide = [_widened(found[0], count, groups, kernel) for found, count in zip((first, second), own, strict=True)]
    if wide[0].shape != wide[1].shape or wide[0].size > first[0].size + second[0].size:
        return False
    index.set_weights(one, wide[0] + wide[1], first[1] + second[1])
    for name, value in (("group", groups), ("kernel_shape", kernel.tolist()), ("pads", [*(kernel // 2).tolist()] * 2)):
        set_attribute(one, name, value)
    return True


def _is_centred(node: onnx.NodeProto, kernel: tuple[int, ...]) -> bool:
    half = [size // 2 for size in kernel]
    is_odd = all(size % 2 for size in kernel) and set(attribute(node, "dilations", [1])) == {1}
    return is_odd and list(attribute(node, "pads", [0, 0, 0, 0])) == half * 2


def _widened(weight: NDArray[Any], own: int, groups: int, kernel: NDArray[np.integer]) -> NDArray[Any]:
    """Weights ``(O, I, ...)`` of `own` groups for a larger kernel and fewer groups."""
    outputs, inputs = weight.shape[:2]
    margins = [(int(size - less) // 2,) * 2 for size, less in zip(kernel, weight.shape[2:], strict=True)]
    parts, rows = own // groups, np.arange(outputs)
    wide = np.zeros((outputs, parts, inputs, *kernel), weight.dtype)
    wide[rows, rows // (outputs // own) % parts] = np.pad(weight, ((0, 0), (0, 0), *margins))
    return wide.reshape(outputs, parts * inputs, *kernel)


class MeanToPool(GraphPass):
    """Replaces every average over the whole map by GlobalAveragePool.

    onnxruntime keeps convolutions and pools in its blocked layout (NCHWc), which a ReduceMean makes it unpack: with
    pools the published GhostOne takes 2.72 ms a face, with ReduceMean 2.84 ms. GlobalAveragePool also has an INT8
    form, and no kernel size that fixes the input size.

    Rewrite rules:
        - ``AveragePool(x)`` with a kernel as large as ``x`` and no padding becomes ``GlobalAveragePool(x)``.
        - ``ReduceMean(x, axes=[2, 3], keepdims=1)`` of a rank-4 tensor becomes ``GlobalAveragePool(x)``.
        - The same with ``keepdims=0`` becomes ``Flatten(GlobalAveragePool(x))``.
    """

    # Thousands of pixels are summed in another order.
    tolerance: ClassVar[float] = 1e-5

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index, count = GraphIndex(model), 0
        for node in list(model.graph.node):
            if is_spatial_mean(index, node) or _pools_all(index, node):
                source = node.input[0]
                if node.op_type == "ReduceMean" and not attribute(node, "keepdims", 1):
                    pooled = f"{node.output[0]}_pooled"
                    index.insert(node, onnx.helper.make_node("GlobalAveragePool", [source], [pooled]))
                    become(node, "Flatten", pooled, axis=1)
                else:
                    become(node, "GlobalAveragePool", source)
                count += 1
        return f"{count} averages became GlobalAveragePool" if count else ""


def _pools_all(index: GraphIndex, node: onnx.NodeProto) -> bool:
    if node.op_type != "AveragePool" or not spatially_unpadded(node):
        return False
    shape = index.shapes.get(node.input[0], ())
    return len(shape) == 4 and tuple(attribute(node, "kernel_shape", [])) == shape[2:]


class ConvToGemm(GraphPass):
    """Replaces a convolution whose kernel covers its input by Flatten and Gemm.

    onnxruntime unrolls patches for a convolution and not for a Gemm: alone, the 7x7 convolution at the end of a PFLD
    takes a tenth less time for one face and a third less for eight.

    Rewrite rule:
        - ``Flatten(Conv(x))`` or ``Flatten(Relu(Conv(x)))`` with constant weights, one group, no padding, dilation 1,
          and a kernel as large as ``x``, where nothing else reads what lies between, becomes
          ``Gemm(Flatten(x))`` or ``Relu(Gemm(Flatten(x)))``.
    """

    # Thousands of products are summed in another order.
    tolerance: ClassVar[float] = 1e-5

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index, done = GraphIndex(model), []
        for node in list(model.graph.node):
            if node.op_type == "Conv" and _covers_input(index, node) and _replace_by_gemm(index, node):
                done.append(node.output[0])
                index = GraphIndex(model)
        return f"{len(done)} convolutions replaced" if done else ""


def _covers_input(index: GraphIndex, node: onnx.NodeProto) -> bool:
    shape, weights = index.shapes.get(node.input[0]), index.weights(node)
    if shape is None or weights is None or not spatially_unpadded(node):
        return False
    if attribute(node, "group", 1) != 1 or set(attribute(node, "dilations", [1])) != {1}:
        return False
    return tuple(shape[2:]) == weights[0].shape[2:]


def _replace_by_gemm(index: GraphIndex, conv: onnx.NodeProto) -> bool:
    flatten = index.only_consumer(conv.output[0])
    if flatten is not None and flatten.op_type == "Relu":
        flatten = index.only_consumer(flatten.output[0])
    if flatten is None or flatten.op_type != "Flatten" or attribute(flatten, "axis", 1) != 1:
        return False
    weights = index.weights(conv)
    if weights is None or not index.bypass(flatten):
        return False
    weight, bias = weights
    flat = f"{conv.output[0]}_flat"
    index.insert(conv, onnx.helper.make_node("Flatten", [conv.input[0]], [flat], axis=1))
    index.set_constant(conv, 1, weight.reshape(len(weight), -1))
    index.set_constant(conv, 2, bias)
    become(conv, "Gemm", flat, *conv.input[1:], transB=1)
    return True


class RecognizeHardActivations(GraphPass):
    """Gives hard-sigmoid and hard-swish their operators, and folds a hard-sigmoid behind a layer into its weights.

    Howard et al., Searching for MobileNetV3, arXiv 1905.02244, section 5.2. Integer kernels know HardSwish by two
    nodes, and a Clip behind a layer by the layer's own range.

    Rewrite rules:
        - ``Clip(x + 3, 0, 6) / 6`` becomes ``HardSigmoid(x, 1/6, 1/2)``, also where it is multiplied by 1/6.
        - ``x * HardSigmoid(x, 1/6, 1/2)`` and ``x * Clip(x + 3, 0, 6) / 6`` become ``HardSwish(x)``.
        - ``HardSigmoid(Conv(x, w, b), alpha, beta)`` or of ``Gemm``, where nothing else reads the layer, becomes
          ``Clip(Conv(x, alpha * w, alpha * b + beta), 0, 1)``.
        - ``PRelu`` with one slope for all channels becomes ``LeakyRelu``.
    """

    tolerance: ClassVar[float] = 1e-5

    def _rewrite(self, model: onnx.ModelProto) -> str:
        count = 0
        for rule, kinds in (
            (_sigmoid_of_clip, ("Mul", "Div")),
            (_swish_of_sigmoid, ("Mul",)),
            (_clip_of_sigmoid, ("HardSigmoid",)),
            (_leaky_of_prelu, ("PRelu",)),
        ):
            index = GraphIndex(model)
            for node in list(model.graph.node):
                if node.op_type in kinds and rule(index, node):
                    count, index = count + 1, GraphIndex(model)
            # What a rule left unread would look like a reader to the next.
            drop_unused(model)
        return f"{count} activations" if count else ""


def _scalar(index: GraphIndex, name: str) -> float | None:
    value = index.constants.get(name)
    return float(value.item()) if value is not None and value.size == 1 else None


def _and_scalar(index: GraphIndex, node: onnx.NodeProto) -> tuple[str, float] | None:
    """The computed input and the constant of an Add, Mul or Div of two inputs, one of them a constant number."""
    for place, other in ((1, 0), (0, 1)) if node.op_type != "Div" else ((1, 0),):
        value = _scalar(index, node.input[place])
        if value is not None:
            return node.input[other], value
    return None


def _is_sixth(node: onnx.NodeProto, value: float) -> bool:
    return abs(value - 6) < 1e-6 if node.op_type == "Div" else abs(value - 1 / 6) < 1e-6


def _shifted_source(index: GraphIndex, name: str) -> str:
    """x, where a tensor is ``Clip(x + 3, 0, 6)`` and nothing else reads what lies between; else an empty string."""
    clip = index.producers.get(name)
    if clip is None or clip.op_type != "Clip" or len(clip.input) != 3 or index.only_consumer(name) is None:
        return ""
    add = index.producers.get(clip.input[0])
    if add is None or add.op_type != "Add" or index.only_consumer(clip.input[0]) is None:
        return ""
    added = _and_scalar(index, add)
    bounds = [_scalar(index, end) for end in clip.input[1:]]
    return added[0] if added is not None and (added[1], *bounds) == (3, 0, 6) else ""


def _sigmoid_of_clip(index: GraphIndex, node: onnx.NodeProto) -> bool:
    scaled = _and_scalar(index, node)
    if scaled is None or not _is_sixth(node, scaled[1]):
        return False
    if source := _shifted_source(index, scaled[0]):
        become(node, "HardSigmoid", source, alpha=1 / 6, beta=0.5)
        return True
    product = index.producers.get(scaled[0])
    if product is None or product.op_type != "Mul" or index.only_consumer(scaled[0]) is None:
        return False
    for one, other in (product.input, reversed(product.input)):
        if one == _shifted_source(index, other):
            become(node, "HardSwish", one)
            return True
    return False


def _swish_of_sigmoid(index: GraphIndex, node: onnx.NodeProto) -> bool:
    for one, other in (node.input, reversed(node.input)):
        gate = index.producers.get(other)
        if gate is not None and gate.op_type == "HardSigmoid" and gate.input[0] == one:
            slope, offset = attribute(gate, "alpha", 0.2), attribute(gate, "beta", 0.5)
            if abs(slope - 1 / 6) < 1e-6 and offset == 0.5:
                become(node, "HardSwish", one)
                return True
    return False


def _clip_of_sigmoid(index: GraphIndex, node: onnx.NodeProto) -> bool:
    layer = index.producers.get(node.input[0])
    if layer is None or layer.op_type not in ("Conv", "Gemm") or index.only_consumer(node.input[0]) is None:
        return False
    weights = index.weights(layer)
    if weights is None or node.input[0] in layer.input:
        return False
    slope, offset = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    weight, bias = (values.astype(np.float64) for values in weights)
    index.set_weights(layer, (slope * weight).astype(np.float32), (slope * bias + offset).astype(np.float32))
    ends = (index.add_constant(f"{node.output[0]}_{end}", np.array(end, np.float32)) for end in (0, 1))
    become(node, "Clip", node.input[0], *ends)
    return True


def _leaky_of_prelu(index: GraphIndex, node: onnx.NodeProto) -> bool:
    slopes = index.constants.get(node.input[1])
    if slopes is None or slopes.size == 0 or (slopes != slopes.flat[0]).any():
        return False
    become(node, "LeakyRelu", node.input[0], alpha=float(slopes.flat[0]))
    return True
