"""The INT8 stage: a budget is held with the fewest float layers, what falls short is an error, the file tells all."""

import platform
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pfld_edge.model_tables import int8_lines
from pfld_edge_calib.evaluation.drift import DriftEstimate, Verdict
from pfld_edge_convert.benchmark import timing
from pfld_edge_convert.benchmark.timing import Times
from pfld_edge_convert.calibration import sample_crops
from pfld_edge_convert.errors import CalibrationError, ConvertError, FellShortError
from pfld_edge_convert.export import export_onnx
from pfld_edge_convert.int8_stage import Int8Request, LabelledCrops, make_int8
from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.passes.base import GraphIndex, run_passes
from pfld_edge_convert.passes.canonical_form import default_passes
from pfld_edge_convert.quantization import mixed_precision
from pfld_edge_convert.quantization.mixed_precision import (
    FaceDrift,
    LayerCost,
    QuantizationReport,
    attach_report,
    deviation_per_face,
    fusion_coverage,
    layer_costs,
    read_report,
    search_float_layers,
)
from pfld_edge_convert.quantization.plan import Layer, Plan
from pfld_edge_convert.quantization.quantizer import Quantized, Quantizer
from pfld_edge_convert.quantization.settings import TARGETS, QuantizationSettings
from pfld_edge_convert.reparameterize import reparameterize
from pfld_edge_runtime import Contract, ModelContractError, prepare_input
from pfld_edge_train.models import ModelConfig, build_model

CONTRACT = Contract(model="pfld-edge-s", input_size=64)
FAST = QuantizationSettings(ranges="minmax", feedback=False)


SLOWER = {name: Times(np.full(20, value), np.full(20, value)) for name, value in (("fp32", 1.0), ("int8", 1.25))}


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    torch.manual_seed(0)
    model = build_model(ModelConfig("pfld-edge-s1", width_factor=0.5, input_size=64))
    samples = np.asarray(prepare_input(sample_crops(CONTRACT), CONTRACT), np.float32)
    return run_passes(export_onnx(reparameterize(model), 64), default_passes(), samples)[0]


@pytest.fixture(scope="module")
def labelled(network: onnx.ModelProto) -> LabelledCrops:
    """Faces whose truth is what the float network says, but for a little."""
    crops = sample_crops(CONTRACT, 8)
    truth = run_model(network, prepare_input(crops, CONTRACT)).reshape(8, 98, 2)
    truth = truth + np.random.default_rng(0).normal(0, 0.02, truth.shape).astype(np.float32)
    # Random weights put all points in one place; the eyes are set apart, as the unit of the NME.
    truth[:, 60] += [0.4, 0]
    return LabelledCrops(crops, truth, np.arange(8) % 2 == 0, np.arange(8))


def test_the_outcome_tells_coverage_costs_and_times(network: onnx.ModelProto, labelled: LabelledCrops) -> None:
    outcome = make_int8(
        network,
        CONTRACT,
        Int8Request(labelled.crops, "eight", FAST, max_drift=0.5, labelled=labelled, allow_slower=True),
    )
    assert outcome.contract.calibration == "eight"
    assert outcome.coverage.integer
    assert outcome.coverage.floating == ()
    assert outcome.budget is not None
    assert outcome.budget.holds
    assert outcome.budget.float_layers == ()
    assert set(outcome.times) == {"fp32", "int8"}
    report = read_report(outcome.quantized.model)
    assert report is not None
    assert len(report.costs) == outcome.coverage.integer.__len__()
    deviations = [cost.deviation for cost in report.costs]
    assert deviations == sorted(deviations, reverse=True)
    assert all(cost.sqnr > 15 for cost in report.costs if cost.high > cost.low)


@pytest.fixture(scope="module")
def everything(multi_scale_64: Quantizer) -> onnx.ModelProto:
    return multi_scale_64.make().model


@pytest.mark.parametrize("seed", range(6))
def test_any_layers_may_stay_in_float(multi_scale_64: Quantizer, everything: onnx.ModelProto, seed: int) -> None:
    random = np.random.default_rng(seed)
    layers = [name for name in multi_scale_64.layers if random.random() < (0.1, 0.5, 0.9)[seed % 3]]
    quantized = multi_scale_64.make(tuple(layers))
    assert len(fusion_coverage(quantized.model).floating) == len(layers)
    found = run_model(quantized.model, multi_scale_64.held_back)
    expected = run_model(quantized.plan.model, quantized.float_input(multi_scale_64.held_back))
    reference = run_model(everything, multi_scale_64.held_back)
    assert np.abs(found - expected).mean() < 1.5 * np.abs(reference - expected).mean()


@pytest.mark.parametrize("level", [0, 100, 255])
def test_the_float_network_that_is_rounded_is_the_given_one_whatever_its_mean(
    network: onnx.ModelProto, level: int
) -> None:
    contract = CONTRACT.replace(mean=(level,) * 3, scale=(255.0,) * 3)
    crops = sample_crops(CONTRACT, 8)
    quantized = Quantizer(network, crops, contract, FAST).make()
    expected = run_model(network, prepare_input(crops, contract))
    found = run_model(quantized.plan.model, quantized.float_input(crops))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_held_back_faces_choose_how_channels_are_equalized(network: onnx.ModelProto) -> None:
    crops = sample_crops(CONTRACT, 80)
    tried = Quantizer(network, crops, CONTRACT, FAST).make().tried
    assert list(tried) == ["minmax", "minmax, equalized by faces:98"]
    moved, models = [], []
    expected = run_model(network, prepare_input(crops[3::4], CONTRACT))
    for way in ("minmax", "faces:98"):
        quantized = Quantizer(network, crops, CONTRACT, replace(FAST, equalize_by=way)).make()
        found = run_model(quantized.model, crops[3::4])
        moved.append(deviation_per_face(found, expected, CONTRACT.landmarks.normalizing_points).mean())
        models.append(quantized.model)
    np.testing.assert_allclose(list(tried.values()), moved, rtol=1e-6)
    assert models[0] != models[1]


@pytest.mark.parametrize(
    ("kind", "shape", "more"),
    [("ConvTranspose", (3, 196, 4, 4), {}), ("Einsum", (3, 196), {"equation": "nihw,ij->njhw"})],
)
def test_a_network_without_a_layer_for_int8_is_refused(kind: str, shape: tuple[int, ...], more: dict[str, str]) -> None:
    nodes = [
        helper.make_node(kind, ["x", "w"], ["maps"], **more),
        helper.make_node("GlobalAveragePool", ["maps"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["y"]),
    ]
    image, points = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 3, 64, 64]), ("y", ["n", 196]))
    )
    weight = numpy_helper.from_array(np.full(shape, 0.1, np.float32), "w")
    graph = helper.make_graph(nodes, "g", [image], [points], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    crops = sample_crops(CONTRACT, 8)
    with pytest.raises(ConvertError, match=rf"no layer can compute in INT8.*has {kind}, GlobalAveragePool, Flatten;"):
        make_int8(model, CONTRACT, Int8Request(crops, "eight", FAST, allow_slower=True))


def test_a_budget_that_only_float_holds_is_an_error(
    network: onnx.ModelProto, labelled: LabelledCrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drift(quantized: Quantized) -> FaceDrift:
        return FaceDrift(*[estimate(0.0 if len(quantized.float_layers) == len(quantized.plan.layers) else 1.0)] * 2)

    monkeypatch.setattr("pfld_edge_convert.int8_stage._deviation_measure", lambda _: drift)
    request = Int8Request(labelled.crops, "eight", FAST, allow_slower=True, max_deviation=0.01)
    with pytest.raises(FellShortError, match=r"the deviation is held to 1\.00% only with every layer in float"):
        make_int8(network, CONTRACT, request)


def test_a_budget_needs_labelled_faces(network: onnx.ModelProto, labelled: LabelledCrops) -> None:
    with pytest.raises(CalibrationError, match="labelled faces"):
        make_int8(network, CONTRACT, Int8Request(labelled.crops, "eight", FAST, max_drift=0.01))


def test_a_network_slower_than_fp32_is_an_error(
    network: onnx.ModelProto, labelled: LabelledCrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed_precision, "face_times", lambda _: SLOWER)
    request = Int8Request(labelled.crops, "eight", FAST)
    with pytest.raises(
        FellShortError, match=r"1\.25 ms a face on this machine, the float one 1\.00 ms; .*--allow-slower"
    ):
        make_int8(network, CONTRACT, request)


def test_timings_of_this_machine_do_not_gate_files_for_other_processors(
    network: onnx.ModelProto, labelled: LabelledCrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed_precision, "face_times", lambda _: SLOWER)
    foreign = "x86-avx2" if platform.machine().lower() in ("arm64", "aarch64") else "arm64"
    request = Int8Request(labelled.crops, "eight", replace(FAST, target=foreign))
    assert make_int8(network, CONTRACT, request).times["int8"].milliseconds == 1.25


def test_a_busy_machine_refuses_nothing_and_says_so(
    network: onnx.ModelProto, labelled: LabelledCrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower, faster = np.full(20, 1.25), np.full(20, 0.5)
    disturbed = {"fp32": SLOWER["fp32"], "int8": Times(slower, faster)}
    monkeypatch.setattr(mixed_precision, "face_times", lambda _: disturbed)
    outcome = make_int8(network, CONTRACT, Int8Request(labelled.crops, "eight", FAST))
    line = int8_lines(outcome)[2]
    assert "too noisy to tell" in line
    assert "1.25 by wall time, 0.50 by processor time" in line
    assert "times as fast" not in line
    quiet = {**disturbed, "int8": Times(faster, faster)}
    agreeing = replace(outcome, times=quiet, speed=timing.Judgement(timing.SpeedVerdict.FASTER, 0))
    assert "fp32 1.00 ms, INT8 0.50 ms (2.00 times as fast)" in int8_lines(agreeing)[2]
    for after, said in (
        (0.003, "0.0030 after"),
        (0.005, "0.0050 after: it did not help, the file is the one before it"),
    ):
        tuned = replace(outcome, quantized=replace(outcome.quantized, tuning=(0.004, after)))
        assert int8_lines(tuned)[4] == f"fine-tuning: 0.0040 eye distances from fp32 before, {said}"


@pytest.mark.parametrize(
    ("machine", "features", "targets"),
    [
        ("x86_64", ("avx2", "avx512_vnni"), {"portable", "x86-avx2", "x86-vnni"}),
        ("AMD64", ("avx2",), {"portable", "x86-avx2"}),
        ("AMD64", None, {"portable"}),
        ("aarch64", ("dotprod", "neon"), {"portable", "arm64"}),
    ],
)
def test_a_machine_is_the_targets_whose_instructions_it_has(
    machine: str, features: tuple[str, ...] | None, targets: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr("pfld_edge_convert.quantization.settings.cpu_features", lambda: features)
    assert {name for name, target in TARGETS.items() if target.is_host()} == targets


COSTS = [LayerCost(name, 30, 0, 1, deviation, 0) for name, deviation in (("a", 0.1), ("b", 0.3), ("c", 0.2))]


def estimate(value: float, reach: float = 0.001, faces: int = 19) -> DriftEstimate:
    return DriftEstimate(value, value - reach, value + reach, reach, faces, faces, "bca")


@pytest.mark.parametrize(
    ("every", "large_pose", "verdict"),
    [
        (estimate(0.004), estimate(0.02), Verdict.PASS),  # of 19 faces, too few to be judged
        (estimate(0.0045), estimate(0), Verdict.INCONCLUSIVE),
        (estimate(0.02), estimate(0), Verdict.FAIL),
        (estimate(0.004), estimate(0.0045, faces=20), Verdict.INCONCLUSIVE),
        (estimate(0.004), estimate(0.02, faces=20), Verdict.FAIL),
    ],
)
def test_a_budget_holds_where_the_intervals_end_within_it(
    every: DriftEstimate, large_pose: DriftEstimate, verdict: Verdict
) -> None:
    assert FaceDrift(every, large_pose).judged(0.005)[0] is verdict


def drifting(
    drifts: dict[int, float],
) -> tuple[Callable[..., Quantized], Callable[..., FaceDrift], list[tuple[str, ...]]]:
    """Networks that drift as far as the number of their float layers says."""
    made: list[tuple[str, ...]] = []

    def make(names: tuple[str, ...]) -> Quantized:
        made.append(names)
        return Quantized(onnx.ModelProto(), CONTRACT, Plan(onnx.ModelProto(), {}), "minmax", {}, names)

    return make, lambda quantized: FaceDrift(*[estimate(drifts[len(quantized.float_layers)])] * 2), made


def test_the_fewest_layers_stay_in_float_the_most_expensive_first() -> None:
    make, drift, made = drifting({0: 0.03, 1: 0.02, 2: 0.004, 3: 0.0})
    quantized, budget = search_float_layers(make, COSTS, drift, 0.005)
    assert made == [(), ("b",), ("b", "c")]
    assert quantized.float_layers == budget.float_layers == ("b", "c")
    assert budget.holds


def test_a_budget_that_cannot_be_held_gives_the_best_there_was() -> None:
    make, drift, made = drifting({0: 0.03, 1: 0.01, 2: 0.02, 3: 0.02})
    quantized, budget = search_float_layers(make, COSTS, drift, 0.005)
    assert len(made) == 4
    assert quantized.float_layers == ("b",)
    assert not budget.holds
    assert budget.drifts[-1].all.value == 0.01


def test_a_hopeless_budget_is_an_error_with_figures(network: onnx.ModelProto, labelled: LabelledCrops) -> None:
    # No network comes closer to these than the float one, from which they were made.
    exact = run_model(network, prepare_input(labelled.crops, CONTRACT)).reshape(labelled.landmarks.shape).copy()
    exact[:, 60] += [0.4, 0]
    truth = LabelledCrops(labelled.crops, exact, labelled.large_pose, labelled.photographs)
    with pytest.raises(
        FellShortError,
        match=r"the drift can't be held to 0\.00%: \+.*% with every layer in INT8; at best, .* in float",
    ):
        make_int8(network, CONTRACT, Int8Request(labelled.crops, "eight", FAST, max_drift=0.0, labelled=truth))


def test_a_damaged_report_is_refused() -> None:
    model = onnx.ModelProto()
    attach_report(model, QuantizationReport("mse", {"mse": 0.01}, tuple(COSTS), ("b",), 9))
    again = read_report(model)
    assert again == QuantizationReport("mse", {"mse": 0.01}, tuple(COSTS), ("b",), 9)
    model.metadata_props[0].value = '{"method": "mse"}'
    with pytest.raises(ModelContractError, match="quantization report is damaged"):
        read_report(model)
    assert read_report(onnx.ModelProto()) is None


def test_layers_have_costs_where_all_landmarks_are_one_point(network: onnx.ModelProto) -> None:
    plan = Quantizer(network, sample_crops(CONTRACT), CONTRACT, FAST).make().plan
    flat = onnx.ModelProto()
    flat.CopyFrom(plan.model)
    index = GraphIndex(flat)
    last = index.producers[flat.graph.output[0].name]
    weight, bias = Layer(last, None, "last", depthwise=False).weights(index)
    index.set_weights(last, np.zeros_like(weight, np.float32), np.zeros_like(bias, np.float32))
    faces = np.zeros((4, 3, 64, 64), np.float32)
    costs = layer_costs(replace(plan, model=flat), faces, (60, 72), CONTRACT.landmarks.mirror)
    assert len(costs) == len(plan.weights)
    assert np.isfinite([cost.large_pose for cost in costs]).all()
