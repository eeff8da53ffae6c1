"""End-to-end fine-tuning of a quantized network: its landmarks are fitted to those of the float network.

`IntegerNetwork` computes in torch the integers that the files of a plan compute, with gradients that pass straight
through the rounding (Bengio et al., arXiv 1308.3432). Weights, in steps of their scales, and biases are learned; grids
and scales stay as the formats need them. The result is a plan again, which every format writes.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.formats.qoperator import Arithmetic, Step, integer_steps
from pfld_edge_convert.model_file import open_model
from pfld_edge_convert.passes.base import GraphIndex, attribute, slice_places
from pfld_edge_convert.quantization.plan import (
    LEVELS,
    Grid,
    IntegerWeights,
    Layer,
    Plan,
    clamp_bounds,
    hard_swish_offset,
    nearest_resize,
    resize_places,
)
from pfld_edge_convert.quantization.reconstruction import limits_of, pairs_vary
from pfld_edge_convert.quantization.settings import WeightLimits
from pfld_edge_runtime.arrays import Float32Array

_NEAR = 0.45
"""Largest part of a step by which a weight begins off its integer, towards the float weight."""

RATES = {"weight": 2e-3, "shift": 5e-4}
"""Adam's learning rates: of weights in their steps, of biases in steps of the output."""


class _Quantize(torch.autograd.Function):
    """``round(clamp(values * factor))``, halves to even; the gradient is that without the rounding."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: Tensor, low: float, high: float) -> Tensor:  # noqa: ANN401
        steps = values * factor
        clamped = steps.clamp(low, high)
        ctx.save_for_backward(factor, steps == clamped)
        return clamped.round_()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        factor, inside = ctx.saved_tensors
        return (gradient * inside).mul_(factor), None, None, None


class _IntegerLayer(nn.Module):
    """A Conv or Gemm: weights in steps of their scales, and what is added to biases, in steps of the output."""

    def __init__(self, plan: Plan, layer: Layer, source: Grid, limits: WeightLimits) -> None:
        super().__init__()
        self.node, self._limits = layer.node, limits_of(layer, limits)
        found, step = plan.weights[layer.output], plan.output_scale(layer)
        shape = (-1, *[1] * (found.integers.ndim - 1))
        steps = layer.weights(plan.index)[0] / found.scales.astype(np.float64).reshape(shape)
        start = np.asarray(found.integers + np.clip(steps - found.integers, -_NEAR, _NEAR), np.float64)
        self._vary = pairs_vary(start)
        self.weight = nn.Parameter(torch.tensor(start, dtype=torch.float32))
        self.shift = nn.Parameter(torch.zeros(len(start)))
        # As onnxruntime computes it, in float32.
        real = np.float32(source.scale) * found.scales
        factor = real if step is None else real / np.float32(step)
        self.factor = torch.tensor(factor.reshape(-1, *[1] * (2 if layer.node.op_type == "Conv" else 0)))
        self._unit = torch.tensor((step or 1 / LEVELS) / (source.scale * found.scales.astype(np.float64)))
        self._bias = torch.tensor(found.integer_bias(source.scale), dtype=torch.float64)

    @torch.no_grad()
    def integers(self) -> Tensor:
        """Weights, rounded and within the limits, also those of pairs of neighbours in memory."""
        largest, pair = self._limits.largest, self._limits.largest_pair
        whole = self.weight.round().clamp(-largest, largest)
        if pair is None:
            return whole
        moved = whole.movedim(1, -1)
        rows = moved.reshape(len(whole), -1).clone()
        for left, right in ((rows[:, :-1:2], rows[:, 1::2]), (rows[:, 2::2], rows[:, 1:-1:2])):
            right.copy_(right.minimum(pair - left.clamp(min=0)).maximum(-pair - left.clamp(max=0)))
            if not self._vary:
                break
        return rows.reshape(moved.shape).movedim(-1, 1)

    def integer_bias(self) -> Tensor:
        """In units of the accumulator."""
        return _rounded(self._bias + self.shift * self._unit)

    def forward(self, integers: Tensor) -> Tensor:
        """``(N, O, ...)`` sums; times `factor` they are in steps of the output, or real where the output is."""
        weight = self.integers() + (self.weight - self.weight.detach())
        return _product(self.node, integers, weight, self.integer_bias().float())


class IntegerNetwork(nn.Module):
    """A plan as a torch module: the integers of the QOperator file, and gradients through them.

    They can differ where a sum exceeds the 24 bits of float32.

    Raises:
        ConvertError: An operator without weights has no counterpart here.
    """

    def __init__(self, plan: Plan, limits: WeightLimits) -> None:
        """Take a plan whose weights were made within `limits`."""
        super().__init__()
        self._plan, self._steps = plan, list(integer_steps(plan))
        self._grids = plan.grids
        self._layers: dict[str, _IntegerLayer] = {}
        for step in self._steps:
            if step.layer is not None:
                self._layers[step.output] = _IntegerLayer(plan, step.layer, self._grids[step.layer.source], limits)
            elif step.node.op_type not in _OPERATORS:
                raise ConvertError(
                    f"fine-tuning does not know the operator {step.node.op_type} ({step.output}): "
                    "convert without --finetune"
                )
        self.registered = nn.ModuleList(self._layers.values())

    def forward(self, faces: Tensor) -> Tensor:
        """Landmarks ``(N, 2 * P)`` of faces ``(N, 3, S, S)`` as the float network takes them."""
        return self.run(faces).real(self._plan.model.graph.output[0].name).flatten(1)

    def run(self, faces: Tensor) -> "Values":
        """All tensors of a run."""
        values = Values(self._grids, {self._plan.model.graph.input[0].name: faces})
        for step in self._steps:
            self._run(step, values)
        return values

    @torch.no_grad()
    def plan(self) -> Plan:
        """The plan with what was learned."""
        weights = dict(self._plan.weights)
        for layer in (step.layer for step in self._steps if step.layer is not None):
            learned, scales = self._layers[layer.output], weights[layer.output].scales
            bias = learned.integer_bias().numpy() * (self._grids[layer.source].scale * scales.astype(np.float64))
            weights[layer.output] = IntegerWeights(learned.integers().numpy().astype(np.int8), scales, bias)
        return replace(self._plan, weights=weights)

    def _run(self, step: Step, values: "Values") -> None:
        node, index, output, grids = step.node, self._plan.index, step.output, self._grids
        inputs = [name for name in node.input if name and name not in index.constants]
        clamp = step.node if step.arithmetic is Arithmetic.CLAMP else step.clamp
        bounds = (clamp and clamp_bounds(index, clamp)) or (-math.inf, math.inf)
        factor: Tensor | float = 1.0
        match step.arithmetic:
            case Arithmetic.LAYER:
                layer = self._layers[output]
                made, factor = layer(values.integer(inputs[0])), layer.factor
                if output not in grids:
                    values.reals[output] = (made * factor).clamp(*bounds)
                    return
            case Arithmetic.MOVE:
                moved, zero = [values.integer(name) for name in inputs], grids[output].zero_point
                made = _OPERATORS[node.op_type](node, index, moved)
                # QLinearAveragePool rounds halves to even with the zero point added.
                values.integers[output] = _rounded(made + zero) - zero if node.op_type == "AveragePool" else made
                return
            case Arithmetic.CLAMP:
                made = values.integer(inputs[0])
            case Arithmetic.COMPUTE if node.op_type in _IN_INTEGERS:
                known = [grids[name] for name in inputs]
                made = _IN_INTEGERS[node.op_type]([values.integer(name) for name in inputs], known, grids[output])
            case kind:
                given = [values.real(name) if name in inputs else values.constant(name, index) for name in node.input]
                made = _OPERATORS[node.op_type](node, index, given)
                if kind is Arithmetic.FLOAT:
                    values.reals[output] = made
                    return
                made = made / grids[output].scale
        values.quantize(output, made, factor, grids[output].clamped(bounds))


class Values:
    """Tensors of a run: real, or integers above their zero points."""

    def __init__(self, grids: Mapping[str, Grid], reals: dict[str, Tensor]) -> None:
        """Begin with the real tensors that are known."""
        self._grids, self.reals, self.integers = grids, reals, dict[str, Tensor]()

    def quantize(
        self, name: str, values: Tensor, factor: Tensor | float = 1.0, levels: tuple[int, int] = (0, LEVELS)
    ) -> None:
        """Round what is in steps when multiplied by a factor, and clamp it to levels of the grid."""
        low, high = (level - self._grids[name].zero_point for level in levels)
        self.integers[name] = _Quantize.apply(values, torch.as_tensor(factor), low, high)  # type: ignore[no-untyped-call]

    def integer(self, name: str) -> Tensor:
        """Integers above the zero point of a tensor."""
        if name not in self.integers:
            self.quantize(name, self.reals[name] / self._grids[name].scale)
        return self.integers[name]

    def real(self, name: str) -> Tensor:
        """Real values of a tensor."""
        if name not in self.reals:
            self.reals[name] = self.integers[name] * self._grids[name].scale
        return self.reals[name]

    @staticmethod
    def constant(name: str, index: GraphIndex) -> Tensor:
        """A constant of the graph; an empty one for an input that is left out."""
        return torch.from_numpy(np.array(index.constants[name])) if name else torch.empty(0)


def finetune(
    plan: Plan,
    limits: WeightLimits,
    batches: Iterable[Float32Array],
    elapsed: Callable[[], float],
    normalizing_points: tuple[int, int],
) -> Plan:
    """Fit the landmarks of a plan to its float network's, on batches ``(N, 3, S, S)`` of faces as that takes them.

    `elapsed` tells the share of the budget that is spent, 0 to 1: rates fall to 0 as half a cosine. The loss is the
    mean landmark distance in distances of the normalizing points.
    """
    network = IntegerNetwork(plan, limits)
    named = [(name.rsplit(".", 1)[-1], parameter) for name, parameter in network.named_parameters()]
    groups = [{"params": [found for name, found in named if name == kind], "lr": 0.0} for kind in RATES]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    session, name = open_model(plan.model), plan.model.graph.input[0].name
    for faces in batches:
        share = elapsed()
        if share >= 1:
            break
        for group, rate in zip(optimizer.param_groups, RATES.values(), strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * share)) / 2
        optimizer.zero_grad()
        expected = torch.from_numpy(session.run(None, {name: faces})[0])
        loss = _distance(network(torch.from_numpy(faces)), expected, normalizing_points)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.plan()


def _distance(found: Tensor, expected: Tensor, normalizing_points: tuple[int, int]) -> Tensor:
    one, other = found.reshape(len(found), -1, 2), expected.reshape(len(expected), -1, 2)
    first, second = normalizing_points
    eyes = (other[:, first] - other[:, second]).norm(dim=1)
    moved = ((one - other).square().sum(2) + 1e-10).sqrt().mean(1)
    distance: Tensor = (moved / eyes.clamp(min=1e-3)).mean()
    return distance


def _rounded(values: Tensor) -> Tensor:
    """Round, halves to even; the gradient is that without the rounding."""
    return values.detach().round() + (values - values.detach())


def _product(node: onnx.NodeProto, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A Conv, or a Gemm with weights ``(O, I)``."""
    if node.op_type == "Gemm":
        return functional.linear(values, weight, bias)
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    padding = (top, left)
    if (top, left) != (bottom, right):
        values, padding = functional.pad(values, (left, right, top, bottom)), (0, 0)
    strides, dilations = attribute(node, "strides", [1, 1]), attribute(node, "dilations", [1, 1])
    return functional.conv2d(values, weight, bias, strides, padding, dilations, attribute(node, "group", 1))


def _added(integers: list[Tensor], grids: list[Grid], grid: Grid) -> Tensor:
    one, other = (value * (known.scale / grid.scale) for value, known in zip(integers, grids, strict=True))
    return one + other


def _multiplied(integers: list[Tensor], grids: list[Grid], grid: Grid) -> Tensor:
    return integers[0] * integers[-1] * (grids[0].scale * grids[-1].scale / grid.scale)


def _hard_swish(integers: list[Tensor], grids: list[Grid], grid: Grid) -> Tensor:
    """``x * clip(x / 6 + 1 / 2, 0, 1)``; see `hard_swish_offset`."""
    (found,), (source,) = integers, grids
    sixth = Grid(source.scale / 6, hard_swish_offset(source) or 0)
    low, high = (level - source.zero_point for level in sixth.clamped((0, 1)))
    gate = found.clamp(low, high) + (source.zero_point - sixth.zero_point)
    return _multiplied([found, gate], [source, sixth], grid)


def _averaged(integers: list[Tensor], grids: list[Grid], grid: Grid) -> Tensor:
    size = math.prod(integers[0].shape[2:])
    return integers[0].sum((2, 3), keepdim=True) * (grids[0].scale / (grid.scale * size))


_IN_INTEGERS: dict[str, Callable[[list[Tensor], list[Grid], Grid], Tensor]] = {
    "Add": _added,
    "GlobalAveragePool": _averaged,
    "HardSwish": _hard_swish,
    "Mul": _multiplied,
}
"""Operators from integers to steps of a grid."""


def _float_layer(node: onnx.NodeProto, index: GraphIndex, inputs: list[Tensor]) -> Tensor:
    weights = index.weights(node)
    if weights is None:
        raise ConvertError(f"fine-tuning needs constant weights, which {node.op_type} {node.output[0]} hasn't")
    weight, bias = (torch.from_numpy(np.array(value)) for value in weights)
    return _product(node, inputs[0], weight, bias)


def _clamped(node: onnx.NodeProto, index: GraphIndex, inputs: list[Tensor]) -> Tensor:
    return inputs[0].clamp(*(clamp_bounds(index, node) or (None, None)))


def _pooled(node: onnx.NodeProto, _index: GraphIndex, inputs: list[Tensor]) -> Tensor:
    pads, ceil = attribute(node, "pads", [0, 0, 0, 0]), bool(attribute(node, "ceil_mode", 0))
    kernel, strides = attribute(node, "kernel_shape"), attribute(node, "strides", [1, 1])
    if pads[:2] != pads[2:]:
        raise ConvertError(f"fine-tuning does not know {node.op_type} with other pads at the end ({node.output[0]})")
    if node.op_type == "MaxPool":
        return functional.max_pool2d(inputs[0], kernel, strides, pads[:2], ceil_mode=ceil)
    padded = bool(attribute(node, "count_include_pad", 0))
    return functional.avg_pool2d(inputs[0], kernel, strides, pads[:2], ceil, padded)


def _reshaped(node: onnx.NodeProto, index: GraphIndex, inputs: list[Tensor]) -> Tensor:
    sizes, source = index.constants[node.input[1]].tolist(), inputs[0]
    return source.reshape([source.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])


def _resized(node: onnx.NodeProto, index: GraphIndex, inputs: list[Tensor]) -> Tensor:
    places = resize_places(index, node) if nearest_resize(node) else None
    if places is None:
        raise ConvertError(f"fine-tuning knows Resize to the nearest pixel only ({node.output[0]})")
    rows, columns = map(torch.from_numpy, places)
    return inputs[0][:, :, rows[:, None], columns]


def _sliced(node: onnx.NodeProto, index: GraphIndex, inputs: list[Tensor]) -> Tensor:
    places = slice_places(index, node)
    if places is None:
        raise ConvertError(f"fine-tuning does not know Slice with steps ({node.output[0]}): convert without --finetune")
    return inputs[0][places]


_OPERATORS: dict[str, Callable[[onnx.NodeProto, GraphIndex, list[Any]], Tensor]] = {
    "Add": lambda _node, _index, inputs: inputs[0] + inputs[1],
    "AveragePool": _pooled,
    "Clip": _clamped,
    "Concat": lambda node, _index, inputs: torch.cat(inputs, attribute(node, "axis")),
    "Conv": _float_layer,
    "Div": lambda _node, _index, inputs: inputs[0] / inputs[1],
    "Exp": lambda _node, _index, inputs: inputs[0].exp(),
    "Flatten": lambda _node, _index, inputs: inputs[0].flatten(1),
    "Gemm": _float_layer,
    "GlobalAveragePool": lambda _node, _index, inputs: inputs[0].mean((2, 3), keepdim=True),
    "HardSwish": lambda _node, _index, inputs: functional.hardswish(inputs[0]),
    "Identity": lambda _node, _index, inputs: inputs[0],
    "LeakyRelu": lambda node, _index, inputs: functional.leaky_relu(inputs[0], attribute(node, "alpha", 0.01)),
    "Log": lambda _node, _index, inputs: inputs[0].log(),
    "MatMul": lambda _node, _index, inputs: inputs[0] @ inputs[1],
    "MaxPool": _pooled,
    "Mul": lambda _node, _index, inputs: inputs[0] * inputs[1],
    "ReduceSum": lambda node, _index, inputs: inputs[0].sum(inputs[1].tolist(), bool(attribute(node, "keepdims", 1))),
    "Relu": _clamped,
    "Reshape": _reshaped,
    "Resize": _resized,
    "Sigmoid": lambda _node, _index, inputs: inputs[0].sigmoid(),
    "Slice": _sliced,
    "Softmax": lambda node, _index, inputs: inputs[0].softmax(attribute(node, "axis", -1)),
    "Sub": lambda _node, _index, inputs: inputs[0] - inputs[1],
    "Sum": lambda _node, _index, inputs: sum(inputs[1:], inputs[0]),
    "Tanh": lambda _node, _index, inputs: inputs[0].tanh(),
    "Transpose": lambda node, _index, inputs: inputs[0].permute(*attribute(node, "perm")),
}
"""Operators of real values, and those that move integers."""
