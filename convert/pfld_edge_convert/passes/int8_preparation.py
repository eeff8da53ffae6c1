"""Passes that prepare a float network for 8 bits: pixels as input, aligned channels, equalized channels.

`SpaceToDepthStem` rewrites the quantized network: its first convolution then reads four pixels at a time.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.passes.base import GraphIndex, GraphPass, Nodes, attribute, is_spatial_mean, set_attribute
from pfld_edge_convert.passes.channels import ChannelMap, channel_weights, is_dense, is_depthwise
from pfld_edge_runtime.arrays import Float64Array, Int64Array

Int8 = NDArray[np.int8]


_VALUES_PER_BYTE = 4.0
"""Least number of output values per byte of added weights at which padding pays."""


_LINEAR = frozenset(
    {"Relu", "LeakyRelu", "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"}
    | {"Identity", "Concat", "Add", "Sub", "Flatten"}
)
"""Operators with f(s * x) = s * f(x) for s > 0 in every channel."""

_ONE_SIDED = frozenset({"Relu", "LeakyRelu", "MaxPool", "GlobalMaxPool"})
"""Those of them for which it is wrong for s < 0."""

_NARROW, _COPIES = 16, 3
"""Tensors of so few channels get so many copies of each."""
_MORE_WORK = np.array([1.04, 1.02])
"""Factors on the weights and multiplications of a network that copies may reach."""

_LARGEST_RATIO = 2.0**6
"""A channel that hardly moves is not blown up further than this against the widest of its tensor."""


def pixel_zero_point(mean: Sequence[float]) -> int:
    """The grey level, 0 to 255, that is 0 to a network that reads pixels, from its contract's means."""
    return round(float(np.clip(np.mean(mean), 0, 255)))


class FoldNormalization(GraphPass):
    """Folds ``(pixel - mean) / scale`` into the first convolutions, so that the input is ``pixel - zero_point``.

    Rewrite rule, for every Conv that reads the graph's input, where nothing else reads it:
        - ``Conv((p - mean) / scale, w, b)`` becomes
          ``Conv(p - zero_point, w / scale, b + sum(w * (zero_point - mean) / scale))``.

    Exact inside the picture. Where the convolution pads, its zeros were the grey levels `mean` and become `zero_point`,
    the integer nearest to their mean: with one mean for all channels that is half a grey level at most.

    The pass changes what the input means, so that `run_passes` can't compare outputs; `applies` says whether the rule
    fits, and its test compares on translated inputs.
    """

    def __init__(self, mean: Sequence[float], scale: Sequence[float]) -> None:
        """Set three grey levels and three divisors, in the network's channel order."""
        self._mean, self._scale = np.asarray(mean, np.float64), np.asarray(scale, np.float64)
        self.zero_point = pixel_zero_point(mean)

    def applies(self, model: onnx.ModelProto) -> bool:
        """Whether only convolutions of one group read the input."""
        return bool(self._readers(GraphIndex(model)))

    def _readers(self, index: GraphIndex) -> list[onnx.NodeProto]:
        readers = index.consumers[index.graph.input[0].name]
        return readers if all(node.op_type == "Conv" and is_dense(index, node) for node in readers) else []

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index = GraphIndex(model)
        readers = self._readers(index)
        for node in readers:
            weights = index.weights(node)
            if weights is not None:
                weight, bias = (values.astype(np.float64) for values in weights)
                weight = weight / self._scale.reshape(1, -1, 1, 1)
                shift = (weight.sum(axis=(2, 3)) * (self.zero_point - self._mean)).sum(axis=1)
                index.set_weights(node, weight.astype(np.float32), (bias + shift).astype(np.float32))
        return f"{len(readers)} convolutions read pixels" if readers else ""


_STEM_DEFAULTS = {"dilations": [1, 1], "group": 1}
_STEM = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], **_STEM_DEFAULTS}
"""Geometry of the convolutions that `SpaceToDepthStem` rewrites."""


class SpaceToDepthStem(GraphPass):
    """Moves four neighbouring pixels of a row into twelve channels, for the first convolution (space to depth).

    onnxruntime's 8-bit convolutions are slow for input channels that are no multiple of four. Four pixels in
    channels-last order are twelve channels in the same memory, of which one position gives two neighbouring outputs.
    Every output has the same bits, at 2.7 times the multiplications.

    Rewrite rule, for an input ``(n, H, W, 3)`` uint8 with H even and W a multiple of four:
        - ``QLinearConv(Transpose(x), w)`` with a 3x3 kernel, strides of 2 and one pixel of padding all around, M
          outputs, becomes ``Reshape(QLinearConv(Transpose(Reshape(x)), w'))`` with a 3x2 kernel, strides of (2, 1) and
          2 M outputs. The Transpose nodes that stand in between cancel out when onnxruntime lays the graph out.
    """

    tolerance: ClassVar[float] = 0.0

    def _rewrite(self, model: onnx.ModelProto) -> str:
        index = GraphIndex(model)
        source = model.graph.input[0].name
        transpose = index.only_consumer(source)
        if transpose is None or transpose.op_type != "Transpose" or list(attribute(transpose, "perm")) != [0, 3, 1, 2]:
            return ""
        node = index.only_consumer(transpose.output[0])
        shape = index.shapes[source]
        if node is None or not _fits(index, node, shape):
            return ""
        height, width = (int(size) for size in shape[1:3])
        _replace(index, transpose, node, height, width)
        model.graph.ClearField("value_info")
        return f"{width // 4} groups of four pixels a row"


def _fits(index: GraphIndex, node: onnx.NodeProto, shape: tuple[int | str, ...]) -> bool:
    if node.op_type != "QLinearConv" or len(node.input) < 9 or len(shape) != 4 or shape[3] != 3:
        return False
    sizes = zip(shape[1:3], (2, 4), strict=True)
    # The taps that are added are zeros.
    weight, zero = index.constants.get(node.input[3]), index.constants.get(node.input[5])
    is_constant = weight is not None and zero is not None and zero.ndim == 0 and not zero.any()
    is_stem = all(attribute(node, name, _STEM_DEFAULTS.get(name)) == value for name, value in _STEM.items())
    return is_constant and is_stem and all(isinstance(size, int) and size % unit == 0 for size, unit in sizes)


def _replace(index: GraphIndex, transpose: onnx.NodeProto, node: onnx.NodeProto, height: int, width: int) -> None:
    source, result = transpose.input[0], node.output[0]
    op, inputs, weight = Nodes(f"{result}/", [result]), list[Any](node.input), index.constants[node.input[3]]
    inputs[0] = op.Transpose(op.Reshape(source, [0, height, width // 4, 12]), perm=[0, 3, 1, 2])
    inputs[3] = _weights_of_two(weight)
    for position in (4, 8):
        value = index.constants[node.input[position]]
        if value.ndim == 1 and len(value) == len(weight):
            inputs[position] = np.concatenate([value, value])
    pairs = op.QLinearConv(*inputs, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 1, 1, 0], dilations=[1, 1])
    apart = op.Reshape(op.Transpose(pairs, perm=[0, 2, 3, 1]), [0, height // 2, width // 2, len(weight)])
    op.Transpose(apart, perm=[0, 3, 1, 2], output=result)
    index.insert(transpose, *op.nodes)
    index.graph.initializer.extend(op.constants.values())
    index.graph.node.remove(transpose)
    index.graph.node.remove(node)


def _weights_of_two(weight: Int8) -> Int8:
    """``(2 M, 12, 3, 2)``: kernels of the left and of the right one of two neighbouring outputs."""
    # A group holds pixels 4 g ... 4 g + 3. The left output looks at pixels -1, 0 and 1 of its group, the right one at
    # 1, 2 and 3; pixel -1 is the last of the group before.
    outputs = len(weight)
    result = np.zeros((2, outputs, 4, 3, 3, 2), np.int8)
    for half in range(2):
        for tap in range(3):
            pixel = 2 * half + tap - 1
            result[half, :, pixel % 4, :, :, 0 if pixel < 0 else 1] = weight[:, :, :, tap]
    return result.reshape(2 * outputs, 12, 3, 2)


class AlignChannels(GraphPass):
    """Adds channels of zeros to depthwise convolutions, up to a multiple that 8-bit kernels take.

    onnxruntime's fast 8-bit depthwise kernel takes multiples of 16 channels on x86 and of 8 on arm64; other numbers
    fall back to a kernel that is five times slower. Added channels are multiplied by zero.

    Rewrite rule: a depthwise Conv of C channels gets ``-C % multiple`` more behind its last channel, or behind an
    earlier one where that would misalign another depthwise Conv. Layers that compute that channel get rows of zeros,
    layers that read it columns of zeros; Concat, Add, Relu and pooling carry it. Not where the channel belongs to the
    graph's inputs or outputs, a Flatten over several pixels or an unknown operator, or where padding doesn't pay.
    """

    def __init__(self, multiple: int = 16) -> None:
        """Set the number of channels that a kernel takes at a time."""
        self._multiple = multiple

    def _rewrite(self, model: onnx.ModelProto) -> str:
        tensors = _PaddedChannels(GraphIndex(model), self._multiple)
        depthwise = tensors.depthwise()
        pads: dict[int, int] = {}
        for node, ids in depthwise:
            if not tensors.fits(ids, pads):
                aligned = [others for _, others in depthwise if tensors.fits(others, pads)]
                pads = tensors.widened(node, [ids, *aligned], pads)
        if not pads:
            return ""
        widened = sum(len(_layout(ids, pads)) > len(ids) for _, ids in depthwise)
        before, after = tensors.weight_count({}), tensors.weight_count(pads)
        for node in model.graph.node:
            tensors.widen(node, pads)
        return f"{widened} depthwise convolutions; {before} weights to {after}"


class CopyChannels(GraphPass):
    """Copies the channels of narrow tensors, so that several integers tell one value.

    `reconstruct` adds another fraction of a step to each copy before it is rounded: four copies tell quarters of a step
    (dithering).

    Rewrite rule: the channels that a Conv or Gemm makes are there four times, with the weights that read them shared
    among the copies, where all copies add at most 4 % to the network's weights and 2 % to its multiplications.
    """

    def _rewrite(self, model: onnx.ModelProto) -> str:
        tensors = _PaddedChannels(GraphIndex(model), 1)
        pads = tensors.copied()
        for node in model.graph.node if pads else ():
            tensors.widen(node, pads, copies=True)
        return f"{len(pads)} channels" if pads else ""


class _PaddedChannels:
    """The channels of a graph, and what it costs to put zeros behind some: `pads` says how many behind which."""

    def __init__(self, index: GraphIndex, multiple: int) -> None:
        channels = ChannelMap(index)
        self._index, self._multiple = index, multiple
        self._numbers = {name: channels.channels(name) for name, ids in channels.ids.items() if len(ids)}
        self._fixed = channels.pinned
        for node in index.graph.node:
            made = self._numbers.get(node.output[0], ())
            if node.op_type == "Flatten" and len(made) != len(self._numbers.get(node.input[0], ())):
                # A channel that is spread over several columns.
                self._fixed.update(map(int, made))

    def depthwise(self) -> list[tuple[onnx.NodeProto, Int64Array]]:
        """Depthwise convolutions with their channels."""
        nodes = [node for node in self._index.graph.node if is_depthwise(self._index, node)]
        return [(node, self._numbers[node.input[0]]) for node in nodes if node.input[0] in self._numbers]

    def fits(self, ids: Int64Array, pads: Mapping[int, int]) -> bool:
        return len(_layout(ids, pads)) % self._multiple == 0

    def widened(self, node: onnx.NodeProto, aligned: Sequence[Int64Array], pads: Mapping[int, int]) -> dict[int, int]:
        """Give the padding that aligns a node, the first of `aligned`, and the others, or `pads` if none pays."""
        for last in dict.fromkeys(map(int, aligned[0][::-1])):
            wider = dict(pads)
            while last not in self._fixed and wider.get(last, 0) < pads.get(last, 0) + self._multiple:
                wider[last] = wider.get(last, 0) + 1
                if all(self.fits(ids, wider) for ids in aligned):
                    sizes = self._index.shapes[node.output[0]][1:]
                    values = int(np.prod([size for size in sizes if isinstance(size, int)]))
                    added = self.weight_count(wider) - self.weight_count(pads)
                    return wider if values >= _VALUES_PER_BYTE * added else dict(pads)
        return dict(pads)

    def weight_count(self, pads: Mapping[int, int]) -> int:
        return int(self.work(pads)[0])

    def work(self, pads: Mapping[int, int]) -> Float64Array:
        """Weights and multiply-accumulates."""
        count = np.zeros(2)
        for node in self._index.graph.node:
            weights = channel_weights(self._index, node)
            if weights is not None:
                rows, columns = self._layouts(node, weights[0], pads)
                sizes = [size for size in self._index.shapes.get(node.output[0], ())[2:] if isinstance(size, int)]
                count += len(rows) * len(columns) * int(np.prod(weights[0].shape[2:])) * np.array([1, np.prod(sizes)])
        return count

    def copied(self) -> dict[int, int]:
        """The copies of the channels of narrow tensors, as many as are cheap."""
        pads: dict[int, int] = {}
        most = self.work(pads) * _MORE_WORK
        for node in self._index.graph.node:
            numbers = {*map(int, self._numbers.get(node.output[0], ()))}
            if is_dense(self._index, node) and len(numbers) <= _NARROW and numbers.isdisjoint(self._fixed | {*pads}):
                wider = pads | dict.fromkeys(numbers, _COPIES)
                pads = wider if (self.work(wider) <= most).all() else pads
        return pads

    def widen(self, node: onnx.NodeProto, pads: Mapping[int, int], *, copies: bool = False) -> None:
        """Add rows and columns of zeros; or repeat rows, and share columns out among the copies."""
        weights = channel_weights(self._index, node)
        if weights is None:
            return
        (weight, bias), depthwise = weights, is_depthwise(self._index, node)
        rows, columns = self._layouts(node, weight, pads)
        if (len(rows), len(columns)) == weight.shape[:2]:
            return
        made, read = (np.maximum.accumulate(places) for places in (rows, columns))
        gains, shares = (np.ones(len(rows)), 1 / np.bincount(read)[read]) if copies else (rows >= 0, columns >= 0)
        factors = gains[:, None] * shares
        wider = weight[made][:, read] * factors.reshape(*factors.shape, *(1,) * (weight.ndim - 2))
        self._index.set_weights(node, wider.astype(weight.dtype), (bias[made] * gains).astype(bias.dtype))
        if depthwise:
            set_attribute(node, "group", len(rows))

    def _layouts(
        self, node: onnx.NodeProto, weight: NDArray[np.generic], pads: Mapping[int, int]
    ) -> tuple[Int64Array, Int64Array]:
        """Layouts of a weight's rows and columns."""
        made, read = self._numbers.get(node.output[0]), self._numbers.get(node.input[0])
        rows = np.arange(weight.shape[0]) if made is None else _layout(made, pads)
        whole = read is None or is_depthwise(self._index, node)
        return rows, np.arange(weight.shape[1]) if whole or read is None else _layout(read, pads)


def _layout(ids: Int64Array, pads: Mapping[int, int]) -> Int64Array:
    """Where each position of a padded tensor comes from; -1 for padding."""
    result: list[int] = []
    for position, number in enumerate(map(int, ids)):
        result += [position] + [-1] * pads.get(number, 0)
    return np.array(result)


class EqualizeChannels(GraphPass):
    """Divides each channel where it is computed and multiplies it where it is read.

    Nagel et al., Data-Free Quantization, arXiv 1906.04721, section 4.1, with two differences: ranges are those of
    activations on faces, not of weights, which have a scale per output channel anyway; and channels are followed
    through all operators, so that in ``Concat[x, DW(x)]`` x and DW(x) have factors of their own.

    Rewrite rules, s a number for each channel, positive but for those that reach further below 0 than above and meet no
    operator which tells signs apart:
        - Conv or Gemm that makes a channel: its row and bias divided by s.
        - Conv or Gemm that reads it: its column multiplied by s; a depthwise Conv, its kernel.
        - Relu, LeakyRelu, pooling, Concat, Flatten pass s on; Add and Sub tie the channels that they sum.
        - Channels of the graph's signature and of any other operator keep s = 1.
    """

    tolerance: ClassVar[float] = 1e-5

    def __init__(self, ranges: Mapping[str, Float64Array], strength: float = 1.0) -> None:
        """Set the largest magnitudes ``(C,)`` of tensors as Conv, Relu or Add make them, negative of negative values.

        A `strength` of 1 levels them wholly; less leaves a part of the levelling to the weights that read them, as
        SmoothQuant does (Xiao et al., arXiv 2211.10438, section 4).
        """
        self._ranges = ranges
        self._strength = strength
        self.divisors: dict[str, Float64Array] = {}

    def _rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place, and leave in `divisors` what each activation's channels were divided by."""
        index = GraphIndex(model)
        channels = ChannelMap(index, depthwise_apart=True)
        fixed = channels.pinned | _meeting(index, channels, _LINEAR)
        factors = self._factors(channels, fixed, _column_magnitudes(channels))
        sided = _meeting(index, channels, _LINEAR - _ONE_SIDED)
        factors = {number: abs(factor) if number in sided else factor for number, factor in factors.items()}
        if not factors:
            return ""
        divisors = {
            name: np.array([factors.get(int(number), 1.0) for number in channels.channels(name)])
            for name, ids in channels.ids.items()
            if len(ids)
        }
        count = sum(_scale(index, node, divisors) for node in model.graph.node)
        self.divisors = divisors
        return f"{len(factors)} channels, {count} layers"

    def _factors(self, channels: ChannelMap, fixed: set[int], columns: Mapping[int, float]) -> dict[int, float]:
        factors: dict[int, float] = {}
        for name, ends in self._ranges.items():
            reach = np.abs(ends)
            numbers = [int(number) for number in channels.channels(name)] if name in channels.ids else []
            if not numbers:
                continue
            read = np.array([columns.get(number, 0.0) for number in numbers])
            read = np.where(read > 0, read, read.max() if read.max() > 0 else 1.0)
            wanted = np.maximum(reach, 1e-30) ** self._strength / read ** (1 - self._strength)
            # In shares of the tensor's own reach: an addition ties channels of tensors of different size.
            shares = np.maximum(wanted / wanted.max(), 1 / _LARGEST_RATIO)
            for number, share in zip(numbers, np.copysign(shares, ends), strict=True):
                factors[number] = max(factors.get(number, 0.0), float(share), key=abs)
        return {number: share for number, share in factors.items() if number not in fixed}


def _column_magnitudes(channels: ChannelMap) -> dict[int, float]:
    """Largest weight with which any Conv or Gemm reads each channel."""
    found: dict[int, float] = {}
    for node, weight, _ in channels.dense_layers():
        if node.input[0] not in channels.ids:
            continue
        sizes = np.abs(weight.reshape(*weight.shape[:2], -1)).max(axis=2)
        for number, size in zip(channels.channels(node.input[0]), sizes.max(axis=0), strict=True):
            found[int(number)] = max(found.get(int(number), 0.0), float(size))
    return found


def _meeting(index: GraphIndex, channels: ChannelMap, harmless: frozenset[str]) -> set[int]:
    """Channels that meet an operator which is not harmless, nor a layer that can be scaled."""
    found: set[int] = set()
    for node in index.graph.node:
        if not (node.op_type in harmless or is_spatial_mean(index, node) or channel_weights(index, node)):
            for name in (*node.input, *node.output):
                if name in channels.ids:
                    found.update(map(int, channels.channels(name)))
    return found


def _scale(index: GraphIndex, node: onnx.NodeProto, divisors: Mapping[str, Float64Array]) -> bool:
    """Scale one node's weights; False where it has none."""
    depthwise, weights = is_depthwise(index, node), channel_weights(index, node)
    if weights is None:
        return False
    weight, bias = (values.astype(np.float64) for values in weights)
    read, made = divisors.get(node.input[0]), divisors.get(node.output[0])
    extra = (1,) * (weight.ndim - 2)
    if read is not None:
        weight = weight * (read.reshape(-1, 1, *extra) if depthwise else read.reshape(1, -1, *extra))
    if made is not None:
        weight, bias = weight / made.reshape(-1, 1, *extra), bias / made
    index.set_weights(node, weight.astype(np.float32), bias.astype(np.float32))
    return True
