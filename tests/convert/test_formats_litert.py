"""LiteRT files: every operator as ONNX defines it, the integers that were proven, the same landmarks."""

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from pfld_edge_convert import formats
from pfld_edge_convert.calibration import sample_crops
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.formats import format_named
from pfld_edge_convert.formats.litert import _rounded_twice, write_litert
from pfld_edge_convert.formats.qoperator import write_qoperator
from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.model_stats import layer_weights
from pfld_edge_convert.quantization.mixed_precision import deviation_per_face
from pfld_edge_convert.quantization.plan import Plan
from pfld_edge_convert.quantization.quantizer import Quantized, Quantizer
from pfld_edge_runtime import Contract, LandmarkModel, MissingPackageError

interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert is not installed")

Build = Callable[..., onnx.ModelProto]
RANDOM = np.random.default_rng(0)


def run_file(content: bytes, inputs: Sequence[np.ndarray], *, reference: bool = False) -> np.ndarray:
    """Run a file on one input after the other, with the fastest kernels or with the reference ones."""
    kind = interpreter.OpResolverType.BUILTIN_REF if reference else interpreter.OpResolverType.AUTO
    opened = interpreter.Interpreter(model_content=content, experimental_op_resolver_type=kind)
    opened.allocate_tensors()
    found = []
    for value in inputs:
        opened.set_tensor(opened.get_input_details()[0]["index"], value)
        opened.invoke()
        found.append(opened.get_tensor(opened.get_output_details()[0]["index"]))
    return np.concatenate(found)


def unpacked(content: bytes) -> Any:
    return schema.ModelT.InitFromPackedBuf(bytearray(content))


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


FLOAT_GRAPHS = {
    "padding on an even size, stride 2": (
        [("Conv", ["x", normal(8, 4, 3, 3)], {"strides": [2, 2], "pads": [1] * 4})],
        16,
    ),
    "padding on an odd size, stride 2": (
        [("Conv", ["x", normal(8, 4, 3, 3)], {"strides": [2, 2], "pads": [1] * 4})],
        15,
    ),
    "padding on one side": ([("Conv", ["x", normal(8, 4, 2, 2), normal(8)], {"pads": [1, 0, 0, 1]})], 9),
    "padding of a dilated convolution": (
        [("Conv", ["x", normal(8, 4, 3, 3)], {"pads": [2] * 4, "dilations": [2, 2]})],
        12,
    ),
    "a depthwise convolution": (
        [("Conv", ["x", normal(4, 1, 3, 3), normal(4)], {"group": 4, "pads": [1] * 4, "strides": [2, 2]})],
        10,
    ),
    "a depthwise convolution that doubles the channels": (
        [("Conv", ["x", normal(8, 1, 5, 5)], {"group": 4, "pads": [2] * 4})],
        10,
    ),
    "a convolution in groups": ([("Conv", ["x", normal(6, 2, 3, 3)], {"group": 2})], 8),
    "a flattened map and a product": (
        [("Flatten", ["x"], {}), ("Gemm", [0, normal(5, 144), normal(5)], {"transB": 1})],
        6,
    ),
    "a flattened map that two products read": (
        [
            ("Flatten", ["x"], {}),
            ("Gemm", [0, normal(5, 144)], {"transB": 1}),
            ("Gemm", [0, normal(5, 144)], {"transB": 1}),
            ("Add", [1, 2], {}),
        ],
        6,
    ),
    "a mean and a maximum, concatenated": (
        [
            ("GlobalAveragePool", ["x"], {}),
            ("MaxPool", ["x"], {"kernel_shape": [6, 6]}),
            ("Concat", [0, 1], {"axis": 1}),
            ("Flatten", [2], {}),
        ],
        6,
    ),
    "a soft-argmax": (
        [
            ("Reshape", ["x", np.array([0, 4, -1])], {}),
            ("Softmax", [0], {"axis": 2}),
            ("MatMul", [1, normal(36, 2)], {}),
            ("Flatten", [2], {}),
        ],
        6,
    ),
    "an enlarged map": (
        [
            (
                "Resize",
                ["x", "", np.array([1, 1, 2, 2], np.float32)],
                {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
            ),
            ("Relu", [0], {}),
        ],
        5,
    ),
}


def graph(build: Build, steps: Sequence[tuple[str, list[Any], dict[str, Any]]], size: int) -> onnx.ModelProto:
    """A model of steps whose inputs are ``x``, constants, or numbers of earlier steps."""
    nodes, constants = [], {}
    for place, (kind, inputs, attributes) in enumerate(steps):
        names = []
        for value in inputs:
            if isinstance(value, np.ndarray):
                constants[f"constant{len(constants)}"] = value
                names.append(f"constant{len(constants) - 1}")
            else:
                names.append(f"step{value}" if isinstance(value, int) else value)
        output = "y" if place == len(steps) - 1 else f"step{place}"
        nodes.append(helper.make_node(kind, names, [output], **attributes))
    return build(nodes, constants, ["batch", 4, size, size])


@pytest.mark.parametrize("what", FLOAT_GRAPHS)
def test_operators_compute_what_onnxruntime_does(build: Build, what: str) -> None:
    model = graph(build, *FLOAT_GRAPHS[what])
    size = FLOAT_GRAPHS[what][1]
    batch = normal(3, 4, size, size)
    expected = run_model(model, batch)
    found = run_file(write_litert(Plan(model, {}), Contract()), list(batch.transpose(0, 2, 3, 1)[:, None]))
    if expected.ndim == 4:
        expected = expected.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", ["pfld-edge-s", "pfld-edge-m"])
def test_litert_gives_the_landmarks_of_qoperator(
    bundled: Callable[[str], Quantized], name: str, reference: bool
) -> None:
    quantized = bundled(name)
    crops = sample_crops(quantized.contract, 4 if reference else 16)
    expected = run_model(quantized.model, crops)
    points = quantized.contract.landmarks.normalizing_points
    for rounds_twice in {False, reference}:
        content = write_litert(quantized.plan, quantized.contract, rounds_twice=rounds_twice)
        found = run_file(content, list(crops[:, None]), reference=reference).reshape(expected.shape)
        assert deviation_per_face(found, expected, points).mean() < (1e-4 if rounds_twice else 2e-3)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_any_layers_may_stay_in_float(multi_scale_64: Quantizer, share: float) -> None:
    random = np.random.default_rng(1)
    quantized = multi_scale_64.make(tuple(name for name in multi_scale_64.layers if random.random() < share))
    crops = multi_scale_64.held_back
    expected = run_model(quantized.model, crops)
    for rounds_twice in (False, True):
        content = write_litert(quantized.plan, quantized.contract, rounds_twice=rounds_twice)
        assert np.abs(run_file(content, list(crops[:, None]), reference=rounds_twice) - expected).max() < 1e-3


def test_all_layers_compute_in_integers_and_weights_are_those_of_qoperator(
    bundled: Callable[[str], Quantized], multi_scale_64: Quantizer
) -> None:
    for quantized in (bundled("pfld-edge-s"), multi_scale_64.make()):
        model = unpacked(write_litert(quantized.plan, quantized.contract))
        main = model.subgraphs[0]
        kinds = [model.operatorCodes[operator.opcodeIndex].builtinCode for operator in main.operators]
        layers = {schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D}
        integers = (schema.TensorType.INT8, schema.TensorType.INT16)
        written = []
        for place, (kind, operator) in enumerate(zip(kinds, main.operators, strict=True)):
            # Mean places of heat maps and their refinement are products in float, as the softmax is.
            of_places = schema.BuiltinOperator.SOFTMAX in kinds[:place]
            if kind not in layers | {schema.BuiltinOperator.FULLY_CONNECTED} or of_places:
                continue
            source, weight, bias = (main.tensors[number] for number in operator.inputs)
            assert source.type in integers
            assert main.tensors[operator.outputs[0]].type in integers
            assert weight.type == schema.TensorType.INT8
            assert bias.type == (
                schema.TensorType.INT32 if source.type == schema.TensorType.INT8 else schema.TensorType.INT64
            )
            axis = 3 if kind == schema.BuiltinOperator.DEPTHWISE_CONV_2D else 0
            assert weight.quantization.quantizedDimension == axis
            assert len(weight.quantization.scale) == weight.shape[axis]
            unit = source.quantization.scale[0] * weight.quantization.scale
            np.testing.assert_allclose(bias.quantization.scale, unit, rtol=1e-6)
            if kind in layers:
                stored = np.asarray(model.buffers[weight.buffer].data, np.uint8).view(np.int8).reshape(weight.shape)
                order = (3, 0, 1, 2) if axis else (0, 3, 1, 2)
                shape = [1, 1, 1, 1]
                shape[axis] = -1
                written.append((stored * weight.quantization.scale.reshape(shape)).transpose(order))
        plain = [layer for layer in layer_weights(write_qoperator(quantized.plan)) if layer.kind == "Conv"]
        for found, layer in zip(written, plain, strict=True):
            np.testing.assert_allclose(found, layer.weight, rtol=1e-6)


def test_constants_are_aligned_and_the_bytes_repeat(multi_scale_64: Quantizer) -> None:
    quantized = multi_scale_64.make()
    content = write_litert(quantized.plan, quantized.contract)
    assert content == write_litert(quantized.plan, quantized.contract)
    weights = next(iter(quantized.plan.weights.values())).integers.transpose(0, 2, 3, 1).tobytes()
    place = content.find(weights)
    assert place > 0
    assert place % 16 == 0
    assert struct.unpack_from("<I", content, place - 4)[0] == len(weights)


def test_the_file_carries_its_contract_and_the_runtime_opens_it(bundled: Callable[[str], Quantized]) -> None:
    quantized = bundled("pfld-edge-s")
    model = LandmarkModel.open(write_litert(quantized.plan, quantized.contract))
    assert model.contract == quantized.contract
    crops = sample_crops(quantized.contract, 4)
    expected = run_model(quantized.model, crops).reshape(4, 98, 2)
    np.testing.assert_allclose(model.predict(crops), expected, atol=1e-3)


def test_an_operator_without_counterpart_is_named(build: Build) -> None:
    model = build([helper.make_node("Erf", ["x"], ["y"])], {}, ["batch", 4, 6, 6])
    with pytest.raises(ConvertError, match="no counterpart of Erf"):
        write_litert(Plan(model, {}), Contract())


def test_without_the_package_one_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=r"needs ai-edge-litert.*pfld-edge\[litert\]"):
        format_named("litert")


def _kernel(sums: np.ndarray, ratio: float) -> np.ndarray:
    """Rescale sums as LiteRT's reference kernels do: MultiplyByQuantizedMultiplier of gemmlowp, which rounds twice."""
    fraction, exponent = math.frexp(ratio)
    product = sums * round(fraction * 2**31)
    doubled = np.where(product >= 0, (product + 2**30) // 2**31, -((-product + 2**30 - 1) // 2**31))
    half = 2 ** (-exponent - 1)
    return np.where(doubled >= 0, (doubled + half) >> -exponent, -((-doubled + half) >> -exponent))


@pytest.mark.parametrize("zero_point", [0, 1, 127, 255])
@pytest.mark.parametrize("denominator", [13, 101, 255, 257, 511, 513, 1023, 1025, 4097])
def test_biases_for_kernels_that_round_twice_give_what_rounding_once_does(denominator: int, zero_point: int) -> None:
    sums = np.arange(-zero_point * denominator - 999, (256 - zero_point) * denominator)
    ratio = np.nextafter(np.float32(1) / np.float32(denominator), np.float32(1))
    exact = (2 * sums + denominator) // (2 * denominator)  # round(sum / denominator); an odd one has no ties
    assert (_kernel(sums, float(ratio)) != exact).any()
    (added,) = _rounded_twice(np.array([ratio], np.float64), zero_point)
    np.testing.assert_array_equal(np.maximum(_kernel(sums + added, float(ratio)), 0), np.maximum(exact + zero_point, 0))


@pytest.mark.parametrize("ratio", [2 / 1023, 0.3, 1.5])
def test_biases_of_other_ratios_come_close(ratio: float) -> None:
    (added,) = _rounded_twice(np.array([ratio]), 0)
    first = 0 if ratio > 0.5 else 2.0 ** math.floor(math.log2(ratio))
    assert abs(added * ratio + first) <= ratio / 2


@pytest.mark.parametrize("seed", range(3))
def test_kernels_that_round_twice_give_the_integers_of_qoperator(
    added_convolutions: Callable[[int], Plan], seed: int
) -> None:
    plan = added_convolutions(seed)
    maps = np.random.default_rng(seed).normal(size=(2, 16, 9, 9)).astype(np.float32) / 2
    expected = run_model(write_qoperator(plan), maps).transpose(0, 2, 3, 1)
    once, twice = (
        run_file(
            write_litert(plan, Contract(), rounds_twice=rounds),
            list(maps.transpose(0, 2, 3, 1)[:, None]),
            reference=True,
        )
        for rounds in (False, True)
    )
    assert np.abs(once - expected).max() > plan.grids["y"].scale / 2
    np.testing.assert_allclose(twice, expected, atol=1e-5)
