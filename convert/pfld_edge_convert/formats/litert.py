"""LiteRT format (``.tflite``, formerly TensorFlow Lite): the integers of a plan for phones, browsers, microcontrollers.

Maps are laid out ``(1, H, W, C)``. Activations are int8: the plan's uint8 integers less 128, with the same scales;
weights are int8 with one scale for each output channel, biases int32 in units of input scale times weight scale, as
the LiteRT 8-bit quantization specification demands. Three things differ from the operators of ONNX:

- Padding ``SAME`` adds its odd row and column at the end; where a convolution pads otherwise, a PAD comes before it.
- A product whose output has no grid, such as that of the landmarks, needs one here. It is computed from 16-bit
  integers that hold the same numbers as the 8-bit ones, to 16-bit integers, so that no precision is lost.
- A product of concatenated features of several grids becomes one product for each grid, and their sum.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, inf
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.formats.litert_file import LiteRTFile, Quantization
from pfld_edge_convert.formats.qoperator import Arithmetic, Step, integer_steps
from pfld_edge_convert.passes.base import attribute, is_spatial_mean, slice_places, with_outputs
from pfld_edge_convert.quantization.plan import (
    LEVELS,
    Grid,
    IntegerWeights,
    Layer,
    Plan,
    clamp_bounds,
    nearest_resize,
    resize_places,
)
from pfld_edge_runtime import CONTRACT_KEY, Contract
from pfld_edge_runtime.arrays import Float32Array, Float64Array

Array = NDArray[np.generic]

_TO_SIGNED = 128
_LARGEST_OUTPUT = 4.0
"""Of landmarks, sides of the crop: what lies further outside is clipped to it."""

_SIXTEEN_BITS = 32767

_ACTIVATIONS = {(0.0, inf): 1, (-1.0, 1.0): 2, (0.0, 6.0): 3}
"""Bounds of the schema's ``ActivationFunctionType`` RELU, RELU_N1_TO_1, RELU6."""

_OF_POSITIVE = (1, 3)
"""Those that leave no negative sums."""

_LARGEST_LIFTED = 1 / 8
"""Zero points are multiples of a ratio only roughly: of larger ratios too roughly to be added to a bias."""

_PLAIN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Add": ("ADD", "AddOptions", {"potScaleInt16": False}),
    "Sub": ("SUB", "SubOptions", {"potScaleInt16": False}),
    "Mul": ("MUL", "MulOptions", {}),
    "Div": ("DIV", "DivOptions", {}),
    "Relu": ("RELU", "", {}),
    "Sigmoid": ("LOGISTIC", "", {}),
    "HardSwish": ("HARD_SWISH", "", {}),
}
"""Operators that read what the node reads: name, table of options, options besides the fused activation."""

_AXES = (0, 3, 1, 2)
"""Where the axes of ``(N, C, H, W)`` are in a file."""


def write_litert(plan: Plan, contract: Contract, *, rounds_twice: bool = False) -> bytes:
    """Write the INT8 network of a plan, for one face a call; `contract` goes into the metadata.

    `rounds_twice` is for TensorFlow Lite Micro and LiteRT's reference kernels, see `_rounded_twice`.

    The input is ``(1, S, S, 3)`` uint8 pixels, or float32 where the plan's input is float; the output is float32.
    ConvertError where an operator of the network has no counterpart in LiteRT.
    """
    return _Writer(plan, rounds_twice=rounds_twice).written(contract)


class _Writer:
    """Knows which tensors exist as int8, as float32, or as both so far, by their numbers in the file."""

    def __init__(self, plan: Plan, *, rounds_twice: bool) -> None:
        self._rounds_twice = rounds_twice
        # Of the landmarks alone, the one output that the runtime takes from this format.
        plan = replace(plan, model=with_outputs(plan.model, plan.model.graph.output[0].name))
        self._plan, self._index = plan, plan.index
        self._grids = dict(plan.grids)
        self._file = LiteRTFile()
        self._integer: dict[str, int] = {}
        self._float: dict[str, int] = {}

    def written(self, contract: Contract) -> bytes:
        source = self._open()
        for step in integer_steps(self._plan):
            if step.arithmetic is Arithmetic.FLOAT:
                self._write_float(step.node)
            else:
                self._write_integer(step)
        outputs = [self._as_float(value.name) for value in self._plan.model.graph.output]
        return self._file.written([source], outputs, {CONTRACT_KEY: contract.to_json()})

    def _open(self) -> int:
        """Add the input; pixels become the int8 of the grid that the first layers read."""
        name = self._plan.model.graph.input[0].name
        shape = self._shape(name)
        if not self._plan.uint8_input:
            self._float[name] = self._file.tensor(name, shape, "float32")
            return self._float[name]
        pixels = self._file.tensor(name, shape, "uint8", Quantization.of(1.0, self._grids[name].zero_point))
        self._integer[name] = self._new_integer(name)
        self._file.operator("QUANTIZE", [pixels], self._integer[name], "QuantizeOptions")
        return pixels

    def _write_integer(self, step: Step) -> None:
        node, output = step.node, step.output
        if step.layer is not None:
            self._write_layer(step, step.layer, self._plan.weights[output])
        elif node.op_type == "Identity":
            self._integer[output] = self._integer[node.input[0]]
        elif step.arithmetic is Arithmetic.CLAMP:
            self._integer[output] = self._clamped(step, self._as_integer(node.input[0]))
        else:
            inputs = [self._as_integer(name) for name in node.input if name in self._grids]
            made = self._new_integer(output)
            self._write_operator(node, inputs, made, fused := self._fused(step))
            self._integer[output] = made if fused else self._clamped(step, made)

    def _fused(self, step: Step) -> int:
        """Number of the fused activation function that is a step's Relu or Clip; 0 where none is."""
        bounds = step.clamp and clamp_bounds(self._index, step.clamp)
        return _ACTIVATIONS.get(bounds, 0) if bounds else 0

    def _clamped(self, step: Step, integers: int) -> int:
        """Clamp int8 to the bounds of a step's Relu or Clip, unless all of the grid lies within."""
        grid, clamp = self._grids[step.output], step.clamp
        bounds = clamp_bounds(self._index, step.node if clamp is None else clamp)
        low, high = grid.clamped(bounds) if bounds else (0, LEVELS)
        for kind, level, is_needed in (("MAXIMUM", low, low > 0), ("MINIMUM", high, high < LEVELS)):
            if is_needed:
                quantization = Quantization.of(grid.scale, grid.zero_point - _TO_SIGNED)
                name = f"{step.output}.{kind.lower()}"
                bound = self._file.constant(name, np.array([level - _TO_SIGNED], np.int8), quantization)
                made = self._file.like(integers, f"{name}.int8", self._shape(step.output))
                self._file.operator(kind, [integers, bound], made, "MaximumMinimumOptions")
                integers = made
        return integers

    def _write_float(self, node: onnx.NodeProto) -> None:
        output, source = node.output[0], node.input[0]
        if node.op_type in ("Reshape", "Flatten") and source in self._integer:
            # Moves integers as well as what they stand for, and four times fewer bytes.
            self._grids[output] = self._grids[source]
            self._integer[output] = self._new_integer(output)
            self._write_operator(node, [self._integer[source]], self._integer[output])
        elif node.op_type == "Identity":
            self._float[output] = self._as_float(source)
        elif node.op_type in ("Conv", "Gemm", "MatMul"):
            self._write_float_layer(node)
        else:
            has_settings = node.op_type in ("Reshape", "Resize", "ReduceMean", "ReduceSum", "Clip", "Slice")
            inputs = [self._as_float(name) for name in (node.input[:1] if has_settings else node.input)]
            self._float[output] = self._file.tensor(output, self._shape(output), "float32")
            self._write_operator(node, inputs, self._float[output])

    def _write_float_layer(self, node: onnx.NodeProto) -> None:
        source, output = node.input[0], node.output[0]
        constant = self._index.constants.get(node.input[1])
        keep = node.op_type == "MatMul"
        values = self._index.weights(node)
        if keep and constant is not None and constant.ndim == 2:
            values = constant.T, np.zeros(constant.shape[1], np.float32)
        if values is None or values[0].ndim not in (2, 4):
            raise ConvertError(f"the LiteRT format has no {node.op_type} of two computed tensors ({output})")
        weight, bias = values
        read = self._as_float(source)
        self._float[output] = self._file.tensor(output, self._shape(output), "float32")
        if node.op_type == "Conv":
            self._convolve(node, read, self._convolution_constants(node, output, weight, bias), self._float[output])
            return
        stored = self._file.constant(f"{output}.w", self._in_file_order(source, weight))
        self._multiply([read, stored, self._file.constant(f"{output}.b", bias)], self._float[output], keep=keep)

    def _write_layer(self, step: Step, layer: Layer, weights: IntegerWeights) -> None:
        name, source = layer.output, self._grids[layer.source]
        if name not in self._grids:
            self._float[name] = self._wide_layer(layer, weights, source)
            return
        read, fused, grid = self._as_integer(layer.source), self._fused(step), self._grids[name]
        scales, bias, lift = weights.scales, weights.integer_bias(source.scale), 0
        if self._rounds_twice:
            # One float up: of a ratio less than 1 / q, the first sum above a half might be rounded down.
            scales = np.nextafter(scales, np.float32(inf))
            ratio = scales.astype(np.float64) * (source.scale / grid.scale)
            if fused in _OF_POSITIVE:
                bias = bias + _rounded_twice(ratio, 0)
            elif layer.node.op_type == "Conv" and ratio.max() < _LARGEST_LIFTED:
                lift, fused = grid.zero_point, 0
                bias = bias + _rounded_twice(ratio, lift)
        unit = np.float32(source.scale) * scales
        made = self._new_integer(name)
        if layer.node.op_type == "Conv":
            constants = self._convolution_constants(layer.node, name, weights.integers, bias, (scales, unit))
            shape, label = self._shape(name), Quantization.of(grid.scale, -_TO_SIGNED)
            computed = self._file.tensor(f"{name}.lifted", shape, "int8", label) if lift else made
            self._convolve(layer.node, read, constants, computed, fused)
            if lift:
                self._lower(name, lift, computed, made)
        else:
            stored = self._in_file_order(layer.source, weights.integers)
            weight = self._file.constant(f"{name}.w", stored, Quantization(scales))
            self._multiply([read, weight, self._file.constant(f"{name}.b", bias, Quantization(unit))], made, fused)
        self._integer[name] = made if fused else self._clamped(step, made)

    def _lower(self, name: str, lift: int, lifted: int, output: int) -> None:
        """Take a number off integers, exactly: a depthwise convolution of one pixel with the weight 1."""
        channels = self._shape(name)[3]
        one, unit = Quantization.of(1, 0), Quantization.of(self._grids[name].scale, 0)
        weight = self._file.constant(f"{name}.one", np.ones((1, 1, 1, channels), np.int8), one)
        bias = self._file.constant(f"{name}.lift", np.full(channels, -lift, np.int32), unit)
        options = {"padding": self._file.number("Padding", "VALID"), "strideH": 1, "strideW": 1, "depthMultiplier": 1}
        inputs = [lifted, weight, bias]
        self._file.operator("DEPTHWISE_CONV_2D", inputs, output, "DepthwiseConv2DOptions", **options)

    def _wide_layer(self, layer: Layer, weights: IntegerWeights, grid: Grid) -> int:
        """A product of 16-bit integers, dequantized."""
        name, file, integers, bias = layer.output, self._file, weights.integers, weights.bias
        unit = weights.scales.astype(np.float64) * grid.scale
        wide = file.tensor(f"{name}.int16", self._shape(layer.source), "int16", Quantization.of(grid.scale, 0))
        file.operator("QUANTIZE", [self._as_integer(layer.source)], wide, "QuantizeOptions")
        weight = file.constant(f"{name}.w", self._in_file_order(layer.source, integers), Quantization(weights.scales))
        added = file.constant(
            f"{name}.b", np.rint(bias / unit).astype(np.int64), Quantization(np.asarray(unit, np.float32))
        )
        # The largest that any input can give, but landmarks never lie that far outside.
        ends = integers * np.float64(-grid.zero_point), integers * np.float64(LEVELS - grid.zero_point)
        sums = np.maximum(*ends).sum(axis=1), np.minimum(*ends).sum(axis=1)
        largest = max(float(np.abs(end * unit + bias).max()) for end in sums)
        largest = min(largest, _LARGEST_OUTPUT) if name in self._index.outputs else largest
        grid16 = Quantization.of(max(largest, 1e-6) / _SIXTEEN_BITS, 0)
        made = file.tensor(f"{name}.product", self._shape(name), "int16", grid16)
        self._multiply([wide, weight, added], made)
        real = file.tensor(f"{name}.real", self._shape(name), "float32")
        file.operator("DEQUANTIZE", [made], real, "DequantizeOptions")
        if layer.clamp is not None:
            clamped = file.tensor(name, self._shape(name), "float32")
            self._write_operator(layer.clamp, [real], clamped)
            return clamped
        return real

    def _convolution_constants(
        self,
        node: onnx.NodeProto,
        name: str,
        weight: Array,
        bias: Array,
        scales: tuple[Float32Array, Float32Array] | None = None,
    ) -> list[int]:
        """Add weights ``(O, I, kh, kw)`` and bias, in the order that LiteRT wants, with their scales."""
        axis = 3 if self._is_depthwise(node) else 0
        stored = weight.transpose(1, 2, 3, 0) if axis else weight.transpose(0, 2, 3, 1)
        of_weight, of_bias = (
            (None, None) if scales is None else (Quantization(scales[0], 0, axis), Quantization(scales[1]))
        )
        return [
            self._file.constant(f"{name}.w", np.ascontiguousarray(stored), of_weight),
            self._file.constant(f"{name}.b", bias, of_bias),
        ]

    def _is_depthwise(self, node: onnx.NodeProto) -> bool:
        groups = int(attribute(node, "group", 1))
        return groups > 1 and groups == self._shape(node.input[0])[3]

    def _convolve(
        self, node: onnx.NodeProto, source: int, constants: Sequence[int], output: int, fused: int = 0
    ) -> None:
        kernel = attribute(node, "kernel_shape") or self._index.constants[node.input[1]].shape[2:]
        source, options = self._padded(node, source, kernel)
        down, across = attribute(node, "dilations", [1, 1])
        options |= {"dilationHFactor": down, "dilationWFactor": across, "fusedActivationFunction": fused}
        kind, table = "CONV_2D", "Conv2DOptions"
        if self._is_depthwise(node):
            kind, table = f"DEPTHWISE_{kind}", f"Depthwise{table}"
            options["depthMultiplier"] = self._shape(node.output[0])[3] // self._shape(node.input[0])[3]
        self._file.operator(kind, [source, *constants], output, table, **options)

    def _padded(self, node: onnx.NodeProto, source: int, kernel: Sequence[int]) -> tuple[int, dict[str, int]]:
        """Pad a map as a convolution or pool of ONNX would; what it then reads, and its options."""
        sizes = self._shape(node.input[0])[1:3]
        pads = list(attribute(node, "pads", [0, 0, 0, 0]))
        automatic = attribute(node, "auto_pad", b"NOTSET")
        if automatic not in (b"NOTSET", b"VALID"):
            raise ConvertError(f"the LiteRT format has no automatic padding {automatic.decode()} ({node.output[0]})")
        strides, dilations = attribute(node, "strides", [1, 1]), attribute(node, "dilations", [1, 1])
        same, valid = (
            {"padding": self._file.number("Padding", name), "strideH": strides[0], "strideW": strides[1]}
            for name in ("SAME", "VALID")
        )
        if automatic == b"VALID" or not any(pads):
            return source, valid
        before, after, is_same = pads[:2], [0, 0], True
        for axis, size in enumerate(sizes):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            count = (size + before[axis] + pads[axis + 2] - reach) // strides[axis] + 1
            needed = (count - 1) * strides[axis] + reach - size
            is_same &= count == ceil(size / strides[axis]) and before[axis] == max(needed, 0) // 2
            after[axis] = max(needed - before[axis], 0)
        if is_same:
            return source, same
        name = f"{node.output[0]}.padded"
        shape = (1, *(size + first + last for size, first, last in zip(sizes, before, after, strict=True)))
        made = self._file.like(source, name, (*shape, self._shape(node.input[0])[3]))
        rows = np.array([[0, 0], [before[0], after[0]], [before[1], after[1]], [0, 0]], np.int32)
        inputs = [source, self._file.constant(f"{name}.rows", rows)]
        if node.op_type == "MaxPool":
            # No zeros: they would be larger than what is negative.
            lowest = (
                np.array([-_TO_SIGNED], np.int8) if node.input[0] in self._integer else np.array([-inf], np.float32)
            )
            inputs.append(self._file.like(source, f"{name}.lowest", (1,), lowest))
            self._file.operator("PADV2", inputs, made, "PadV2Options")
        else:
            self._file.operator("PAD", inputs, made, "PadOptions")
        return made, valid

    def _is_plain_pool(self, node: onnx.NodeProto) -> bool:
        plain = len(node.output) == 1 and not attribute(node, "ceil_mode", 0)
        plain &= set(attribute(node, "dilations", [1])) == {1}
        return plain and (node.op_type == "MaxPool" or not any(attribute(node, "pads", [])))

    def _multiply(self, inputs: Sequence[int], output: int, fused: int = 0, *, keep: bool = False) -> None:
        options = {"fusedActivationFunction": fused, "keepNumDims": keep}
        self._file.operator("FULLY_CONNECTED", inputs, output, "FullyConnectedOptions", **options)

    def _write_operator(self, node: onnx.NodeProto, inputs: list[int], output: int, fused: int = 0) -> None:
        """Add the operator that computes a node without weights, of int8 as of float tensors."""
        file, kind, source = self._file, node.op_type, node.input[0]
        rank = self._index.rank(source)
        if kind in ("Flatten", "Reshape"):
            self._reshape(node, inputs[0], output)
        elif kind == "Concat":
            axis = int(attribute(node, "axis")) % rank
            axis = _AXES[axis] if rank == 4 else axis
            file.operator("CONCATENATION", inputs, output, "ConcatenationOptions", axis=axis)
        elif kind in _PLAIN:
            operator, table, options = _PLAIN[kind]
            file.operator(operator, inputs, output, table, **options, fusedActivationFunction=fused)
        elif kind == "Sum":
            file.operator("ADD_N", inputs, output, "AddNOptions")
        elif kind == "GlobalAveragePool" or is_spatial_mean(self._index, node):
            axes = file.constant(f"{node.output[0]}.axes", np.array([1, 2], np.int32))
            keep = kind == "GlobalAveragePool" or bool(attribute(node, "keepdims", 1))
            file.operator("MEAN", [inputs[0], axes], output, "ReducerOptions", keepDims=keep)
        elif kind in ("MaxPool", "AveragePool") and self._is_plain_pool(node):
            kernel = attribute(node, "kernel_shape")
            read, window = self._padded(node, inputs[0], kernel)
            window |= {"filterHeight": kernel[0], "filterWidth": kernel[1]}
            file.operator(
                "MAX_POOL_2D" if kind == "MaxPool" else "AVERAGE_POOL_2D", [read], output, "Pool2DOptions", **window
            )
        elif nearest_resize(node) and self._is_whole_resize(node):
            sizes = file.constant(f"{node.output[0]}.sizes", np.array(self._shape(node.output[0])[1:3], np.int32))
            file.operator("RESIZE_NEAREST_NEIGHBOR", [inputs[0], sizes], output, "ResizeNearestNeighborOptions")
        elif kind == "Softmax" and rank < 4 and int(attribute(node, "axis", -1)) % rank == rank - 1:
            file.operator("SOFTMAX", inputs, output, "SoftmaxOptions", beta=1.0)
        elif kind == "Log":
            file.operator("LOG", inputs, output)
        elif kind == "ReduceSum" and rank < 4 and len(node.input) > 1:
            axes = file.constant(f"{node.output[0]}.axes", self._index.constants[node.input[1]].astype(np.int32))
            keep = bool(attribute(node, "keepdims", 1))
            file.operator("SUM", [inputs[0], axes], output, "ReducerOptions", keepDims=keep)
        elif kind == "Slice" and rank < 4 and (places := slice_places(self._index, node)) is not None:
            starts = [place.indices(size)[0] for place, size in zip(places, self._shape(source), strict=True)]
            part = starts, self._shape(node.output[0])
            name = f"{node.output[0]}.part"
            rows = [file.constant(f"{name}{i}", np.array(row, np.int32)) for i, row in enumerate(part)]
            file.operator("SLICE", [inputs[0], *rows], output, "SliceOptions")
        elif kind == "LeakyRelu":
            file.operator("LEAKY_RELU", inputs, output, "LeakyReluOptions", alpha=attribute(node, "alpha", 0.01))
        elif kind == "Clip" and (bounds := clamp_bounds(self._index, node)):
            self._write_float_clip(node.output[0], inputs[0], output, bounds)
        else:
            raise ConvertError(
                f"the LiteRT format has no counterpart of {kind} ({node.output[0]}): choose other formats"
            )

    def _is_whole_resize(self, node: onnx.NodeProto) -> bool:
        """Whether a Resize to the nearest pixel reads those that TensorFlow Lite does, which knows sizes, no scales."""
        places = resize_places(self._index, node)
        sizes = self._index.shapes[node.input[0]][2:]
        return places is not None and all(
            np.array_equal(read, np.arange(len(read)) * int(size) // len(read))
            for read, size in zip(places, sizes, strict=True)
        )

    def _write_float_clip(self, name: str, source: int, output: int, bounds: tuple[float, float]) -> None:
        ends = [self._file.constant(f"{name}.{i}", np.array([bound], np.float32)) for i, bound in enumerate(bounds)]
        above = self._file.like(source, f"{name}.above", self._shape(name))
        self._file.operator("MAXIMUM", [source, ends[0]], above, "MaximumMinimumOptions")
        self._file.operator("MINIMUM", [above, ends[1]], output, "MaximumMinimumOptions")

    def _reshape(self, node: onnx.NodeProto, source: int, output: int) -> None:
        """Reshape in the order of ``(N, C, H, W)``, unless the product that reads it has its columns reordered."""
        shape, target = self._shape(node.input[0]), self._shape(node.output[0])
        if len(target) == 4:
            raise ConvertError(f"the LiteRT format has no {node.op_type} to a map ({node.output[0]})")
        if len(shape) == 4 and shape[1] * shape[2] > 1 and not self._is_reordered(node):
            name = f"{node.output[0]}.nchw"
            moved = self._file.like(source, name, (1, shape[3], shape[1], shape[2]))
            order = self._file.constant(f"{name}.order", np.array(_AXES, np.int32))
            self._file.operator("TRANSPOSE", [source, order], moved, "TransposeOptions")
            source = moved
        sizes = self._file.constant(f"{node.output[0]}.shape", np.array(target, np.int32))
        self._file.operator("RESHAPE", [source, sizes], output, "ReshapeOptions", newShape=np.array(target, np.int32))

    def _is_reordered(self, node: onnx.NodeProto) -> bool:
        """Whether a map is flattened for one product alone, whose columns then take the file's order."""
        reader = self._index.only_consumer(node.output[0])
        is_product = reader is not None and reader.op_type == "Gemm" and self._index.weights(reader) is not None
        return is_product and self._index.rank(node.output[0]) == 2

    def _in_file_order(self, source: str, weight: Array) -> Array:
        """Columns ``(O, C * H * W)`` as a flattened map of the file has them, ``(O, H * W * C)``."""
        node = self._index.producers.get(source)
        if node is None or node.op_type not in ("Flatten", "Reshape") or not self._is_reordered(node):
            return np.ascontiguousarray(weight)
        shape = self._shape(node.input[0])
        if len(shape) != 4:
            return np.ascontiguousarray(weight)
        maps = weight.reshape(len(weight), shape[3], *shape[1:3])
        return np.ascontiguousarray(maps.transpose(0, 2, 3, 1).reshape(weight.shape))

    def _new_integer(self, name: str) -> int:
        grid = self._grids[name]
        quantization = Quantization.of(grid.scale, grid.zero_point - _TO_SIGNED)
        return self._file.tensor(f"{name}_int8", self._shape(name), "int8", quantization)

    def _as_integer(self, name: str) -> int:
        if name not in self._integer:
            real = self._as_float(name)
            self._integer[name] = self._new_integer(name)
            self._file.operator("QUANTIZE", [real], self._integer[name], "QuantizeOptions")
        return self._integer[name]

    def _as_float(self, name: str) -> int:
        if name not in self._float and name in self._index.constants:
            value = self._index.constants[name]
            # Maps' constants, (C, 1, 1) or (1, C, 1, 1), have their channels last.
            self._float[name] = self._file.constant(name, np.moveaxis(value, -3, -1) if value.ndim > 2 else value)
        elif name not in self._float:
            self._float[name] = self._file.tensor(name, self._shape(name), "float32")
            self._file.operator("DEQUANTIZE", [self._integer[name]], self._float[name], "DequantizeOptions")
        return self._float[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        """Sizes in the file, for one face."""
        dims = self._index.shapes.get(name, ("?",))
        sizes = [1, *dims[1:]]
        if not all(isinstance(size, int) for size in sizes) or dims == ("?",):
            raise ConvertError(f"the LiteRT format needs fixed sizes; those of {name} are {dims}")
        known = [int(size) for size in sizes]
        return (1, known[2], known[3], known[1]) if len(known) == 4 else tuple(known)


def _rounded_twice(ratio: Float64Array, zero_point: int) -> NDArray[np.int32]:
    """What to add to the biases of a layer for kernels that round twice to give what rounding once does.

    They round a sum times its ratio to a multiple of 2^-r first, 2^-(r + 1) <= ratio < 2^-r, then to a whole number.
    Of positive sums this is rounding half upwards with 2^-(r + 1) added, which `ratio` `(O,)` and a smaller bias undo
    to ratio / 2 or less: sums of the ratio 1 / q, q odd, lie 1 / (2 q) or more from a half, so that all come out right.
    Negative sums are rounded the other way; with a zero point they are made positive by adding it before the rounding.
    """
    first = np.where(ratio < 0.5, np.exp2(np.floor(np.log2(ratio))), 0)
    return np.rint((zero_point - first) / ratio).astype(np.int32)
