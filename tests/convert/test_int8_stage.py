"""The INT8 stage: a budget is held with the fewest float layers, what falls short is an error, the file tells all."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from pfld_edge_convert import int8_stage
from pfld_edge_convert.calibration_batches import proof_crops
from pfld_edge_convert.errors import CalibrationError, FellShortError
from pfld_edge_convert.export import export_onnx
from pfld_edge_convert.fuse import reparameterize
from pfld_edge_convert.inference import run_model
from pfld_edge_convert.int8_stage import Int8Request, JudgedFaces, make_int8
from pfld_edge_convert.pipeline import optimize
from pfld_edge_convert.quantization.budget import FaceDrift, keep_within
from pfld_edge_convert.quantization.coverage import fusion_coverage
from pfld_edge_convert.quantization.deviation import deviation_per_face
from pfld_edge_convert.quantization.quantizer import Quantized, Quantizer
from pfld_edge_convert.quantization.report import QuantizationReport, attach_report, read_report
from pfld_edge_convert.quantization.sensitivity import LayerCost
from pfld_edge_convert.quantization.settings import QuantizationSettings
from pfld_edge_runtime import Contract, ModelContractError, prepare_input
from pfld_edge_train.models import ModelConfig, build_model

CONTRACT = Contract(model="pfld-edge-s", input_size=64)
FAST = QuantizationSettings(ranges="minmax", feedback=False)


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    torch.manual_seed(0)
    model = build_model(ModelConfig("pfld-edge-s", width_factor=0.5, input_size=64))
    samples = np.asarray(prepare_input(proof_crops(CONTRACT), CONTRACT), np.float32)
    return optimize(export_onnx(reparameterize(model), 64), samples)[0]


@pytest.fixture(scope="module")
def judged(network: onnx.ModelProto) -> JudgedFaces:
    """Faces whose truth is what the float network says, but for a little."""
    crops = proof_crops(CONTRACT, 8)
    truth = run_model(network, prepare_input(crops, CONTRACT)).reshape(8, 98, 2)
    truth = truth + np.random.default_rng(0).normal(0, 0.02, truth.shape).astype(np.float32)
    # Random weights put all points in one place; the eyes are set apart, as the unit of the NME.
    truth[:, 60] += [0.4, 0]
    return JudgedFaces(crops, truth, np.arange(8) % 2 == 0)


def test_the_outcome_tells_coverage_costs_and_times(network: onnx.ModelProto, judged: JudgedFaces) -> None:
    outcome = make_int8(
        network, CONTRACT, Int8Request(judged.crops, "eight", FAST, max_drift=0.5, judged=judged, allow_slower=True)
    )
    assert outcome.contract.calibration == "eight"
    assert outcome.coverage.share == 1
    assert outcome.budget is not None
    assert outcome.budget.holds
    assert outcome.budget.float_layers == ()
    assert set(outcome.milliseconds) == {"fp32", "int8"}
    report = read_report(outcome.quantized.model)
    assert report is not None
    assert len(report.costs) == outcome.coverage.integer.__len__()
    deviations = [cost.deviation for cost in report.costs]
    assert deviations == sorted(deviations, reverse=True)
    assert all(cost.sqnr > 15 for cost in report.costs if cost.high > cost.low)


@pytest.fixture(scope="module")
def multi_scale() -> Quantizer:
    """Of a network whose last product reads features of several maps, each with a grid of its own."""
    torch.manual_seed(0)
    contract = Contract(input_size=64)
    model = build_model(ModelConfig("pfld-ghostone", width_factor=0.25, input_size=64))
    samples = np.asarray(prepare_input(proof_crops(contract), contract), np.float32)
    network = optimize(export_onnx(reparameterize(model), 64), samples)[0]
    return Quantizer(network, proof_crops(contract), contract, FAST)


@pytest.mark.parametrize("seed", range(6))
def test_any_layers_may_stay_in_float(multi_scale: Quantizer, seed: int) -> None:
    random = np.random.default_rng(seed)
    layers = [name for name in multi_scale.layers if random.random() < (0.1, 0.5, 0.9)[seed % 3]]
    quantized = multi_scale.make(tuple(layers))
    assert len(fusion_coverage(quantized.model).floating) == len(layers)
    found = run_model(quantized.model, multi_scale.held_back)
    expected = run_model(quantized.floating, quantized.floating_input(multi_scale.held_back))
    everything = run_model(multi_scale.make().model, multi_scale.held_back)
    assert np.abs(found - expected).mean() < 1.5 * np.abs(everything - expected).mean()


def test_held_back_faces_choose_how_channels_are_levelled(network: onnx.ModelProto) -> None:
    crops = proof_crops(CONTRACT, 80)
    tried = Quantizer(network, crops, CONTRACT, FAST).make().tried
    assert list(tried) == ["minmax", "minmax, levelled by faces:98"]
    moved, models = [], []
    expected = run_model(network, prepare_input(crops[3::4], CONTRACT))
    for way in ("minmax", "faces:98"):
        quantized = Quantizer(network, crops, CONTRACT, replace(FAST, levelled_by=way)).make()
        found = run_model(quantized.model, crops[3::4])
        moved.append(deviation_per_face(found, expected, CONTRACT.landmarks.normalizing_points).mean())
        models.append(quantized.model)
    np.testing.assert_allclose(list(tried.values()), moved, rtol=1e-6)
    assert models[0] != models[1]


def test_a_budget_needs_labelled_faces(network: onnx.ModelProto, judged: JudgedFaces) -> None:
    with pytest.raises(CalibrationError, match="labelled faces"):
        make_int8(network, CONTRACT, Int8Request(judged.crops, "eight", FAST, max_drift=0.01))


def test_a_network_slower_than_fp32_is_an_error(
    network: onnx.ModelProto, judged: JudgedFaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_stage, "face_milliseconds", lambda _: {"fp32": 1.0, "int8": 1.25})
    request = Int8Request(judged.crops, "eight", FAST)
    with pytest.raises(
        FellShortError, match=r"1\.25 ms a face on this machine, the float one 1\.00 ms; .*--allow-slower"
    ):
        make_int8(network, CONTRACT, request)


COSTS = [LayerCost(name, 30, 0, 1, deviation, 0) for name, deviation in (("a", 0.1), ("b", 0.3), ("c", 0.2))]


def drifting(
    drifts: dict[int, float],
) -> tuple[Callable[..., Quantized], Callable[..., FaceDrift], list[tuple[str, ...]]]:
    """Networks that drift as far as the number of their float layers says."""
    made: list[tuple[str, ...]] = []

    def make(names: tuple[str, ...]) -> Quantized:
        made.append(names)
        from pfld_edge_convert.quantization.plan import Plan

        return Quantized(onnx.ModelProto(), CONTRACT, onnx.ModelProto(), Plan({}), "minmax", {}, names)

    return make, lambda quantized: FaceDrift(drifts[len(quantized.float_layers)], 0.0), made


def test_the_fewest_layers_stay_in_float_the_most_expensive_first() -> None:
    make, drift, made = drifting({0: 0.03, 1: 0.02, 2: 0.004, 3: 0.0})
    quantized, budget = keep_within(make, COSTS, drift, 0.005)
    assert made == [(), ("b",), ("b", "c")]
    assert quantized.float_layers == budget.float_layers == ("b", "c")
    assert budget.holds


def test_a_budget_that_cannot_be_held_gives_the_best_there_was() -> None:
    make, drift, made = drifting({0: 0.03, 1: 0.01, 2: 0.02, 3: 0.02})
    quantized, budget = keep_within(make, COSTS, drift, 0.005)
    assert len(made) == 4
    assert quantized.float_layers == ("b",)
    assert not budget.holds
    assert budget.drifts[-1].all == 0.01


def test_a_hopeless_budget_is_an_error_with_figures(network: onnx.ModelProto, judged: JudgedFaces) -> None:
    # No network comes closer to these than the float one, from which they were made.
    exact = run_model(network, prepare_input(judged.crops, CONTRACT)).reshape(judged.landmarks.shape).copy()
    exact[:, 60] += [0.4, 0]
    truth = JudgedFaces(judged.crops, exact, judged.turned)
    with pytest.raises(FellShortError, match=r"the drift can't be held to 0\.00%: \+.*% with every layer in INT8"):
        make_int8(network, CONTRACT, Int8Request(judged.crops, "eight", FAST, max_drift=0.0, judged=truth))


def test_a_damaged_report_is_refused() -> None:
    model = onnx.ModelProto()
    attach_report(model, QuantizationReport("mse", {"mse": 0.01}, tuple(COSTS), ("b",), 9))
    again = read_report(model)
    assert again == QuantizationReport("mse", {"mse": 0.01}, tuple(COSTS), ("b",), 9)
    model.metadata_props[0].value = '{"method": "mse"}'
    with pytest.raises(ModelContractError, match="quantization report is damaged"):
        read_report(model)
    assert read_report(onnx.ModelProto()) is None
