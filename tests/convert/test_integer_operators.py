"""Operators between layers run in integers, within a step of their grids of what onnxruntime computes in float."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.formats.litert import write_litert
from pfld_edge_convert.formats.qdq import write_qdq
from pfld_edge_convert.formats.qoperator import float_operators, write_qoperator
from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.passes.base import GraphIndex, with_outputs
from pfld_edge_convert.quantization import plan as plans
from pfld_edge_convert.quantization.finetuning import IntegerNetwork
from pfld_edge_convert.quantization.plan import (
    Grid,
    Plan,
    clamp_bounds,
    integer_tensors,
    resize_places,
    weighted_layers,
)
from pfld_edge_convert.quantization.ranges import collect_histograms, grids_from
from pfld_edge_convert.quantization.reconstruction import NodewiseRunner, initial_plan
from pfld_edge_convert.quantization.settings import SATURATION_FREE
from pfld_edge_runtime import Contract

Build = Callable[..., onnx.ModelProto]
Nodes = Sequence[onnx.NodeProto]

INPUTS = np.random.default_rng(1).normal(scale=2, size=(4, 3, 8, 8)).astype(np.float32)
node = helper.make_node


def network(build: Build, between: Nodes, constants: dict[str, np.ndarray], opset: int = 18) -> onnx.ModelProto:
    """``a = conv(x)`` and ``b = conv(x)``, the nodes between, which make ``m``, and a last layer that reads it."""
    random = np.random.default_rng(0)
    weights = {name: random.normal(scale=0.6, size=(8, size, 1, 1)) for name, size in (("wa", 3), ("wb", 3), ("wy", 8))}
    nodes = [
        node("Conv", ["x", "wa"], ["a"], kernel_shape=[1, 1]),
        node("Conv", ["x", "wb"], ["b"], kernel_shape=[1, 1]),
        *between,
        node("Conv", ["m", "wy"], ["last"], kernel_shape=[1, 1]),
        node("Flatten", ["last"], ["y"]),
    ]
    constants = {**{name: value.astype(np.float32) for name, value in weights.items()}, **constants}
    return build(nodes, constants, ["n", 3, 8, 8], opset)


def quantized(model: onnx.ModelProto) -> Plan:
    index = GraphIndex(model)
    histograms = collect_histograms(model, integer_tensors(index, weighted_layers(index)), [INPUTS])
    grids = {"x": Grid.covering(INPUTS.min(), INPUTS.max()), **grids_from(index, histograms, "minmax")}
    return initial_plan(model, grids, SATURATION_FREE)


def on_grids(plan: Plan, tensors: Sequence[str]) -> onnx.ModelProto:
    """The float network with the integer weights' real values, and the tensors rounded to their grids."""
    model = onnx.ModelProto()
    model.CopyFrom(plan.model)
    index = GraphIndex(model)
    for layer in plan.layers:
        weights = plan.weights[layer.output]
        scale = plan.grids[layer.source].scale
        bias = weights.integer_bias(scale) * (scale * weights.scales.astype(np.float64))
        index.set_weights(
            index.producers[layer.node.output[0]], weights.real().astype(np.float32), bias.astype(np.float32)
        )
    for name in tensors:
        grid = plan.grids[name]
        ends = [index.add_constant(f"{name}.scale", np.array(grid.scale, np.float32))]
        ends.append(index.add_constant(f"{name}.zero", np.array(grid.zero_point, np.uint8)))
        for reader in list(index.consumers[name]):
            reader.input[:] = [f"{name}.rounded" if item == name else item for item in reader.input]
        rounded = [
            node("QuantizeLinear", [name, *ends], [f"{name}.integers"]),
            node("DequantizeLinear", [f"{name}.integers", *ends], [f"{name}.rounded"]),
        ]
        producer = index.producers.get(name)
        place = 0 if producer is None else list(model.graph.node).index(producer) + 1
        for offset, item in enumerate(rounded):
            model.graph.node.insert(place + offset, item)
    return model


def steps_apart(plan: Plan, written: onnx.ModelProto, inputs: Sequence[str], tensor: str = "m") -> float:
    """Largest deviation of a tensor from the float operator on the same inputs, in steps of its grid."""
    grid = plan.grids[tensor]
    reference = run_model(with_outputs(on_grids(plan, ["x", *inputs]), tensor), INPUTS, optimize=False)
    reference = np.clip(reference, grid.low, grid.high)
    found = run_model(with_outputs(written, f"{tensor}_q"), INPUTS)
    shift = 128 if found.dtype == np.int8 else 0
    return float(np.abs(grid.dequantize((found.astype(int) + shift).astype(np.uint8)) - reference).max() / grid.scale)


def bounds(low: float | None, high: float | None) -> dict[str, np.ndarray]:
    ends = {"low": low, "high": high}
    return {name: np.array(value, np.float32) for name, value in ends.items() if value is not None}


RELU6 = bounds(0, 6)
CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[str], set[str]]] = {
    "relu6": ([node("Clip", ["a", "low", "high"], ["m"])], RELU6, [], set()),
    "clip from -1 to 1": ([node("Clip", ["a", "low", "high"], ["m"])], bounds(-1, 1), [], {"Clip"}),
    "clip above": ([node("Clip", ["a", "", "high"], ["m"])], bounds(None, 2), [], set()),
    "clip from 1 to 2": ([node("Clip", ["a", "low", "high"], ["m"])], bounds(1, 2), [], {"Clip"}),
    "clip alone": (
        [node("Clip", ["a", "low", "high"], ["c"]), node("Add", ["c", "a"], ["m"])],
        bounds(-5, 5),
        ["a", "c"],
        {"Clip", "QLinearAdd"},
    ),
    "addition and relu": (
        [node("Add", ["a", "b"], ["s"]), node("Relu", ["s"], ["m"])],
        {},
        ["a", "b"],
        {"QLinearAdd"},
    ),
    "product of maps": ([node("Mul", ["a", "b"], ["m"])], {}, ["a", "b"], {"QLinearMul"}),
    "hard-swish": ([node("HardSwish", ["a"], ["m"])], {}, ["a"], {"Clip", "QLinearMul"}),
    "hard-swish, another reader": (
        [node("HardSwish", ["a"], ["h"]), node("Add", ["h", "a"], ["m"])],
        {},
        ["a", "h"],
        {"Clip", "QLinearMul", "QLinearAdd"},
    ),
    "leaky relu": ([node("LeakyRelu", ["a"], ["m"], alpha=0.2)], {}, ["a"], {"QLinearLeakyRelu"}),
    "silu": (
        [node("Sigmoid", ["a"], ["g"]), node("Mul", ["a", "g"], ["m"])],
        {},
        ["a", "g"],
        {"QLinearSigmoid", "QLinearMul"},
    ),
    "gate of one number a channel": (
        [node("GlobalAveragePool", ["b"], ["p"]), node("Sigmoid", ["p"], ["g"]), node("Mul", ["a", "g"], ["m"])],
        {},
        ["a", "b", "p", "g"],
        {"QLinearGlobalAveragePool", "QLinearSigmoid", "QLinearMul"},
    ),
    "average pool": (
        [node("AveragePool", ["a"], ["m"], kernel_shape=[2, 2], strides=[2, 2])],
        {},
        ["a"],
        {"QLinearAveragePool"},
    ),
    "max pool that pads": (
        [node("MaxPool", ["a"], ["m"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
        {},
        ["a"],
        {"MaxPool"},
    ),
    "resize": (
        [
            node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node(
                "Resize", ["p", "", "twice"], ["r"], coordinate_transformation_mode="asymmetric", nearest_mode="floor"
            ),
            node("Add", ["r", "b"], ["m"]),
        ],
        {"twice": np.array([1, 1, 2, 2], np.float32)},
        ["a", "b"],
        {"MaxPool", "Transpose", "Gather", "QLinearAdd"},
    ),
    "max pool": ([node("MaxPool", ["a"], ["m"], kernel_shape=[2, 2], strides=[2, 2])], {}, ["a"], {"MaxPool"}),
}


GROUPED = np.random.default_rng(2).normal(scale=0.6, size=(8, 4, 3, 3)).astype(np.float32)
OF_ONNXRUNTIME = {
    "channel shuffle": (
        [
            node("Reshape", ["a", "halves"], ["h"]),
            node("Transpose", ["h"], ["t"], perm=[0, 2, 1, 3, 4]),
            node("Reshape", ["t", "whole"], ["m"]),
        ],
        {"halves": np.array([0, 2, 4, 8, 8]), "whole": np.array([0, 8, 8, 8])},
        ["a"],
        {"Reshape", "Transpose"},
    ),
    "halves of two maps": (
        [
            node("Slice", ["a", "zero", "four", "one"], ["p"]),
            node("Slice", ["b", "four", "eight", "one"], ["q"]),
            node("Concat", ["p", "q"], ["m"], axis=1),
        ],
        {name: np.array([value]) for name, value in (("zero", 0), ("one", 1), ("four", 4), ("eight", 8))},
        ["a", "b"],
        {"Slice", "Concat"},
    ),
    "resize by no whole factor": (
        [
            node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Resize", ["p", "", "more"], ["r"], coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
            node("Add", ["r", "b"], ["m"]),
        ],
        {"more": np.array([1, 1, 2.1, 2.1], np.float32)},
        ["a", "b"],
        {"MaxPool", "Transpose", "Gather", "QLinearAdd"},
    ),
    "grouped convolution": (
        [node("Conv", ["a", "grouped"], ["m"], kernel_shape=[3, 3], group=2, dilations=[2, 2], pads=[2, 2, 2, 2])],
        {"grouped": GROUPED},
        ["a"],
        set(),
    ),
}
"""Operators that the LiteRT format lacks."""


@pytest.mark.parametrize("name", [*CASES, *OF_ONNXRUNTIME])
def test_an_operator_runs_in_integers_within_a_step(build: Build, name: str) -> None:
    between, constants, inputs, kinds = {**CASES, **OF_ONNXRUNTIME}[name]
    plan = quantized(network(build, between, constants))
    written = write_qoperator(plan)
    onnx.checker.check_model(written)
    assert not float_operators(plan)
    expected = {"QuantizeLinear", "QLinearConv", "DequantizeLinear", "Flatten"}
    assert {item.op_type for item in written.graph.node} == expected | kinds
    assert steps_apart(plan, written, inputs) < 1.01
    for signed in (False, True):
        assert steps_apart(plan, write_qdq(plan, signed=signed), inputs) < 1.01
    trained = IntegerNetwork(plan, SATURATION_FREE).run(torch.from_numpy(INPUTS))
    for tensor in (*inputs, "m", "last"):
        integers = trained.integer(tensor).detach().numpy() + plan.grids[tensor].zero_point
        np.testing.assert_array_equal(integers, run_model(with_outputs(written, f"{tensor}_q"), INPUTS))


@pytest.mark.parametrize("name", CASES)
def test_litert_has_the_same_integers(build: Build, name: str) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    between, constants, _, _ = CASES[name]
    plan = quantized(network(build, between, constants))
    kind = interpreter.OpResolverType.BUILTIN_REF
    opened = interpreter.Interpreter(model_content=write_litert(plan, Contract()), experimental_op_resolver_type=kind)
    opened.allocate_tensors()
    source, result = (side()[0]["index"] for side in (opened.get_input_details, opened.get_output_details))
    found = []
    for image in INPUTS.transpose(0, 2, 3, 1):
        opened.set_tensor(source, image[None])
        opened.invoke()
        found.append(opened.get_tensor(result))
    expected = run_model(write_qoperator(plan), INPUTS)
    # A step of what the last layer reads, times its weights, and a step of its own.
    reach = np.abs(plan.weights["last"].real()).sum(axis=(1, 2, 3)).max() * plan.grids["m"].scale
    deviation = np.abs(np.concatenate(found) - expected)
    assert deviation.max() < reach + 1.01 * plan.grids["last"].scale
    assert deviation.mean() < 0.7 * plan.grids["last"].scale


def test_a_clip_that_would_lose_a_bit_on_its_input_s_grid_stays_in_float(build: Build) -> None:
    between = [node("Clip", ["a", "low", "high"], ["c"]), node("Add", ["c", "a"], ["m"])]
    model = network(build, between, bounds(-0.5, 0.5))
    plan = quantized(model)
    assert plan.grids["c"].scale < plan.grids["a"].scale / 2
    assert float_operators(plan) == (
        "Clip c: its bounds leave less than half of its input's range",
        "Add m: what it reads is in float",
    )
    written = write_qoperator(plan)
    assert [item.op_type for item in written.graph.node].count("QLinearConv") == 3
    expected = run_model(on_grids(plan, ["x", "a", "c", "m"]), INPUTS, optimize=False)
    assert np.abs(run_model(written, INPUTS) - expected).max() < 2 * plan.grids["last"].scale


def test_layers_around_an_operator_without_integer_kernel_stay_in_integers(build: Build) -> None:
    slopes = np.random.default_rng(3).uniform(0.1, 0.5, size=(8, 1, 1)).astype(np.float32)
    plan = quantized(network(build, [node("PRelu", ["a", "slopes"], ["m"])], {"slopes": slopes}))
    assert float_operators(plan) == ("PRelu m: PRelu has no integer kernel",)
    kinds = [item.op_type for item in write_qoperator(plan).graph.node]
    assert kinds.count("QLinearConv") == 3
    assert steps_apart(plan, write_qoperator(plan), ["a"]) < 1.01
    with pytest.raises(ConvertError, match=r"does not know the operator PRelu \(m\): convert without --finetune"):
        IntegerNetwork(plan, SATURATION_FREE)


def test_what_follows_the_last_layer_is_listed_too(build: Build) -> None:
    model = network(build, [node("Relu", ["a"], ["m"])], {})
    model.graph.node[-1].CopyFrom(node("Softmax", ["last"], ["s"], axis=1))
    model.graph.node.append(node("GlobalAveragePool", ["s"], ["y"]))
    assert float_operators(quantized(model)) == (
        "Softmax s: Softmax has no integer kernel",
        "GlobalAveragePool y: what it reads is in float",
    )


def test_nodes_between_layers_may_move_the_axis_of_the_faces(build: Build) -> None:
    shape = {"s": np.array([-1, 8, 32], np.int64), "back": np.array([-1, 8, 8, 8], np.int64)}
    turned = [node("Transpose", ["a"], ["t"], perm=[1, 0, 2, 3]), node("Relu", ["t"], ["r"])]
    turned += [node("Transpose", ["r"], ["u"], perm=[1, 0, 2, 3]), node("Reshape", ["u", "s"], ["v"])]
    model = network(build, [*turned, node("Reshape", ["v", "back"], ["m"])], shape)
    faces = np.random.default_rng(0).normal(size=(70, 3, 8, 8)).astype(np.float32)
    runner = NodewiseRunner(model, faces)
    for tensor in ("v", "m", "y"):
        expected = run_model(with_outputs(model, tensor), faces)
        np.testing.assert_allclose(runner.run_until(tensor), expected, rtol=1e-5, atol=1e-5)


def test_the_documentation_has_the_operators_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "your-own-network.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| ((?:INT8|float|refused)[^|]*) \| ([^|]*) \|", page, re.MULTILINE))
    known = {
        "INT8, own scale": plans.COMPUTED,
        "INT8, scale of the input": {*plans.MOVES, "AveragePool", "Resize"},
        "refused": plans.QUANTIZED,
    }
    assert {how: table[how] for how in known} == {how: ", ".join(sorted(kinds)) for how, kinds in known.items()}
    assert f"behind Conv, Gemm, {' or '.join(sorted(plans.CLAMPED))} |" in page


@pytest.mark.parametrize("opset", [6, 10, 18])
def test_bounds_are_read_from_attributes_and_from_inputs(build: Build, opset: int) -> None:
    clip = node("Clip", ["a"], ["m"], min=0.0, max=6.0) if opset < 11 else node("Clip", ["a", "low", "high"], ["m"])
    model = network(build, [clip], RELU6 if opset > 10 else {}, opset)
    index = GraphIndex(model)
    assert clamp_bounds(index, index.producers["m"]) == (0, 6)


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_the_bounds_hold_where_a_concatenation_shares_a_wider_grid(build: Build, activation: str) -> None:
    inputs = ["a"] if activation == "Relu" else ["a", "low", "high"]
    between = [node(activation, inputs, ["r"]), node("Concat", ["r", "b"], ["m"], axis=1)]
    constants = {} if activation == "Relu" else RELU6
    weight = np.random.default_rng(2).normal(size=(8, 16, 1, 1)).astype(np.float32)
    model = network(build, between, constants)
    model.graph.initializer.extend([onnx.numpy_helper.from_array(weight, "wm")])
    next(item for item in model.graph.node if item.output[0] == "last").input[1] = "wm"
    plan = quantized(model)
    assert plan.grids["r"] == plan.grids["b"]
    assert plan.grids["r"].zero_point > 20
    assert plan.grids["r"].high > 6.1
    for written in (write_qoperator(plan), write_qdq(plan), write_qdq(plan, signed=True)):
        assert steps_apart(plan, written, [], "r") < 1.01


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_a_last_product_keeps_its_activation(build: Build, activation: str) -> None:
    random = np.random.default_rng(0)
    names = ["g"] if activation == "Relu" else ["g", "low", "high"]
    nodes = [
        node("Conv", ["x", "wa"], ["a"], kernel_shape=[1, 1]),
        node("Flatten", ["a"], ["f"]),
        node("Gemm", ["f", "wg"], ["g"], transB=1),
        node(activation, names, ["y"]),
    ]
    constants = {"wa": random.normal(size=(8, 3, 1, 1)), "wg": random.normal(size=(10, 512)) / 10}
    constants = {name: value.astype(np.float32) for name, value in constants.items()}
    plan = quantized(build(nodes, {**constants, **(RELU6 if activation == "Clip" else {})}, ["n", 3, 8, 8]))
    assert "y" not in plan.grids
    expected = run_model(on_grids(plan, ["x", "a"]), INPUTS, optimize=False)
    assert expected.min() == 0
    for written in (write_qoperator(plan), write_qdq(plan), write_qdq(plan, signed=True)):
        np.testing.assert_allclose(run_model(written, INPUTS), expected, atol=0.02)
        assert run_model(written, INPUTS).min() == 0


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_places_of_a_resize_are_onnxruntimes(build: Build, seed: int, by_scales: bool) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 20, 2).tolist()
    wanted = np.array([1, 1, *random.uniform(1 / min(height, width), 3.5, 2)], np.float32)
    constants = {"w": wanted if by_scales else np.array([2, 3, *random.integers(1, 50, 2)])}
    inputs = ["x", "", "w"] if by_scales else ["x", "", "", "w"]
    resize = node("Resize", inputs, ["y"], coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    model = build([resize], constants, [2, 3, height, width])
    images = random.normal(size=(2, 3, height, width)).astype(np.float32)
    places = resize_places(GraphIndex(model), model.graph.node[0])
    assert places is not None
    np.testing.assert_array_equal(images[:, :, places[0][:, None], places[1]], run_model(model, images))
