"""Without labels: how far landmarks of held-back calibration faces move, the budget of that, and fine-tuning."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np
import onnx
import pytest
from onnx import helper

from pfld_edge.commands.convert import note_deviation
from pfld_edge_convert.calibration import sample_crops
from pfld_edge_convert.errors import FellShortError
from pfld_edge_convert.int8_stage import Int8Request, make_int8
from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.quantization.quantizer import Quantizer
from pfld_edge_convert.quantization.settings import QuantizationSettings
from pfld_edge_runtime import Contract, prepare_input

CONTRACT = Contract(input_size=32)


@pytest.fixture(scope="module")
def network(build: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    shapes = {"a": (8, 3, 3, 3), "b": (16, 8, 3, 3), "y": (196, 16)}
    constants = {}
    for name, shape in shapes.items():
        constants[f"{name}.w"] = random.normal(0, 2 / np.prod(shape[1:]) ** 0.5, shape).astype(np.float32)
        constants[f"{name}.b"] = random.normal(0, 0.1, shape[0]).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "a.w", "a.b"], ["a"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["ra"]),
        helper.make_node("Conv", ["ra", "b.w", "b.b"], ["b"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["b"], ["rb"]),
        helper.make_node("GlobalAveragePool", ["rb"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
        helper.make_node("Gemm", ["features", "y.w", "y.b"], ["y"], transB=1),
    ]
    return build(nodes, constants, ["n", 3, 32, 32])


def test_layers_stay_in_float_until_the_deviation_holds(
    network: onnx.ModelProto, capsys: pytest.CaptureFixture[str]
) -> None:
    crops = sample_crops(CONTRACT, 40)
    settings = QuantizationSettings(ranges="minmax", equalize=0, feedback=False)
    request = Int8Request(crops, "forty", settings, allow_slower=True)
    everything = make_int8(network, CONTRACT, request)
    # One face in four is held back.
    pixels = crops[3::4]
    found = run_model(everything.quantized.model, pixels).reshape(10, 98, 2)
    expected = run_model(network, prepare_input(pixels, CONTRACT)).reshape(10, 98, 2)
    eyes = np.linalg.norm(expected[:, 60] - expected[:, 72], axis=1)
    moved = np.linalg.norm(found - expected, axis=2).mean(axis=1) / eyes
    assert everything.deviation == pytest.approx(moved.mean(), rel=1e-5)
    assert everything.budget is None
    with pytest.raises(FellShortError, match="the deviation can't be held"):
        make_int8(network, CONTRACT, replace(request, max_deviation=1e-12))
    with pytest.raises(FellShortError, match="only with every layer in float"):
        make_int8(network, CONTRACT, replace(request, max_deviation=0.8 * everything.deviation))
    # The budget is held by the upper end of the interval, which with all layers in INT8 lies above this.
    allowed = 1.05 * everything.deviation
    mixed = make_int8(network, CONTRACT, replace(request, max_deviation=allowed))
    assert mixed.budget is not None
    assert 0 < len(mixed.budget.float_layers) < 3
    assert mixed.budget.drifts[0].all.high > allowed
    assert mixed.deviation <= mixed.budget.drifts[-1].all.high <= allowed
    note_deviation(replace(everything, deviation=0.0061))
    assert f"that move them most: {everything.report.costs[0].layer} " in " ".join(capsys.readouterr().err.split())
    note_deviation(replace(everything, deviation=0.0059))
    assert capsys.readouterr().err == ""


def test_fine_tuning_brings_landmarks_of_held_back_faces_closer(network: onnx.ModelProto) -> None:
    settings = QuantizationSettings(ranges="minmax", equalize=0, feedback=False, correct_bias=False)
    quantizer = Quantizer(network, sample_crops(CONTRACT, 40), CONTRACT, settings)
    quantized, steps = quantizer.make(), count()
    tuned = quantizer.finetuned(quantized, lambda: next(steps) / 200)
    moved = [quantizer.deviations(made).mean() for made in (quantized, tuned)]
    assert moved[1] < 0.9 * moved[0]
    assert tuned.contract.quantization == f"{quantized.contract.quantization}, fine-tuned"
    assert tuned.tuning == tuple(moved)
    useless = quantizer.finetuned(quantized, lambda: 1.0)
    assert useless.model is quantized.model
    assert useless.tuning == (moved[0], moved[0])
    for name, weights in tuned.plan.weights.items():
        np.testing.assert_array_equal(weights.scales, quantized.plan.weights[name].scales)
        rows = np.moveaxis(weights.integers.astype(int), 1, -1).reshape(len(weights.integers), -1)
        # Of an odd number of channels every two neighbours can be a pair, of the others the even ones with the next.
        pairs = np.stack([rows[:, :-1], rows[:, 1:]], axis=2)[:, :: 1 if weights.integers.shape[1] % 2 else 2]
        assert np.maximum(pairs, 0).sum(axis=2).max() <= 128
        assert np.maximum(-pairs, 0).sum(axis=2).max() <= 128
