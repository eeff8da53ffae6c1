"""INT8 networks: what they hold, what they cost, what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from pfld_edge_calib import cut_faces, nme_per_face, open_faces
from pfld_edge_convert.calibration import (
    CalibrationSource,
    calibration_crops,
    portrait_crops,
    sample_crops,
    vary_crops,
)
from pfld_edge_convert.errors import CalibrationError
from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.passes.base import run_passes
from pfld_edge_convert.passes.canonical_form import MakeBatchDynamic, UpgradeOpset, default_passes
from pfld_edge_convert.quantization.mixed_precision import deviation_per_face, fusion_coverage
from pfld_edge_convert.quantization.quantizer import Quantizer
from pfld_edge_convert.quantization.settings import QuantizationSettings
from pfld_edge_runtime import Contract, prepare_input
from pfld_edge_train.models import ModelConfig, build_model

Published = Callable[[str], onnx.ModelProto]
Batch = np.ndarray
EYES = (60, 72)
SOON = QuantizationSettings(ranges="minmax", feedback=False)


@pytest.fixture(scope="module")
def slim(published: Published, faces: Batch) -> onnx.ModelProto:
    return run_passes(published("slim"), default_passes(), faces[:1])[0]


def test_everything_is_int8_or_one_layer_less_and_the_output_is_float(slim: onnx.ModelProto) -> None:
    before = slim.SerializeToString()
    crops = sample_crops(Contract())
    quantizer = Quantizer(slim, crops, Contract(), SOON)
    quantized, one = (quantizer.make(names) for names in ((), (quantizer.layers[-1],)))
    kinds = {node.op_type for node in quantized.model.graph.node}
    assert not kinds & {"Conv", "Gemm", "QuantizeLinear", "DequantizeLinear", "QLinearConcat"}
    assert slim.SerializeToString() == before
    assert (quantized.contract.input_dtype, quantized.contract.layout) == ("uint8", "NHWC")
    assert run_model(quantized.model, crops).dtype == np.float32
    assert run_model(quantized.model, crops).shape == (16, 196)
    assert len(quantized.model.SerializeToString()) < len(before) / 3.3
    coverage, without = fusion_coverage(quantized.model), fusion_coverage(one.model)
    assert coverage.floating == ()
    assert coverage.integer
    assert len(without.integer) == len(coverage.integer) - 1
    assert without.floating == (quantizer.layers[-1],)
    assert "1 layer in float" in one.contract.quantization


@pytest.fixture(scope="module")
def small(exported: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    """A network of 32 pixels, ready to be quantized."""
    torch.manual_seed(0)
    return exported(build_model(ModelConfig("pfld-edge-s", width_factor=0.25, input_size=32)), Contract(input_size=32))


@pytest.mark.parametrize("target", ["portable", "x86-avx2", "x86-vnni", "arm64"])
def test_targets_get_the_weights_that_their_multiply_adds_bear(small: onnx.ModelProto, target: str) -> None:
    contract = Contract(input_size=32)
    model = Quantizer(small, sample_crops(contract), contract, QuantizationSettings(target, "minmax")).make().model
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = []
    for node in model.graph.node:
        groups = next((item.i for item in node.attribute if item.name == "group"), 1)
        if node.op_type == "QLinearConv" and groups == 1:
            values = weights[node.input[3]].astype(int)
            rows = values.transpose(0, 2, 3, 1).reshape(len(values), -1)
        elif node.op_type == "QGemm":
            rows = weights[node.input[3]].astype(int).T
        else:
            continue
        assert np.abs(rows).max() <= 127
        even = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
        pairs.append(max(np.maximum(even, 0).sum(2).max(), np.maximum(-even, 0).sum(2).max()))
    # 255 * 128 is the largest multiple of 255 in 16 bits.
    assert (max(pairs) <= 128) == (target in ("portable", "x86-avx2"))


class Faces(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, batches: list[Batch]) -> None:
        self._name, self._batches = name, iter(batches)

    def get_next(self) -> dict[str, Batch] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def baseline(model: onnx.ModelProto, batches: list[Batch], folder: Path) -> onnx.ModelProto:
    """QOperator, uint8, per channel, MinMax, the last Gemm in float: what onnxruntime does by itself at its best."""
    add_pre_process_metadata(model)
    last = model.graph.node[-1]
    quantize_static(
        model,
        folder / "baseline.onnx",
        Faces(model.graph.input[0].name, batches),
        quant_format=QuantFormat.QOperator,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[last.name],
    )
    return onnx.load(folder / "baseline.onnx")


def test_calibrated_on_portraits_a_published_network_beats_onnxruntime_with_real_faces_and_keeps_its_accuracy(
    published: Published, shared: Path, slim: onnx.ModelProto, faces: Batch, tmp_path: Path
) -> None:
    folder = shared / "data/youtube68"
    contract, original = Contract(), published("slim")
    chosen = open_faces(folder / "train.csv", images=folder / "images").load()
    chosen = [chosen[row] for row in np.random.default_rng(0).permutation(len(chosen))[:128]]
    crops = np.concatenate([batch.crops for batch in cut_faces(chosen, contract)])
    seen, unseen = crops[:96], crops[96:]
    plain, _ = run_passes(original, [UpgradeOpset(), MakeBatchDynamic()], faces[:1])
    theirs = baseline(plain, [np.asarray(prepare_input(seen, contract), np.float32)], tmp_path)
    # A quarter of what `convert` takes of the portraits by default, and a quarter of the time.
    ours = Quantizer(slim, calibration_crops(CalibrationSource(limit=64), contract).crops, contract).make()
    expected = run_model(original, prepare_input(unseen, contract))
    moved = [
        deviation_per_face(run_model(network, prepare_input(unseen, fed)), expected, EYES).mean()
        for network, fed in ((theirs, contract), (ours.model, ours.contract))
    ]
    assert moved[1] < 0.75 * moved[0]
    nmes: dict[str, list[float]] = {"float": [], "int8": []}
    for batch in cut_faces(open_faces(shared / "data/WFLW").load(), contract):
        truth = batch.windows.to_crop(np.stack([np.asarray(face.landmarks) for face in batch.faces]))
        for name, network, fed in (("float", slim, contract), ("int8", ours.model, ours.contract)):
            found = run_model(network, prepare_input(batch.crops, fed)).reshape(-1, 98, 2)
            nmes[name] += nme_per_face(found, truth, EYES).tolist()
    assert np.mean(nmes["float"]) == pytest.approx(0.05458, abs=1e-4)
    # onnxruntime's quantizer loses 1.2 to 4.5 % with hundreds of real faces.
    assert np.mean(nmes["int8"]) < np.mean(nmes["float"]) * 1.02


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        (np.zeros((0, 112, 112, 3), np.uint8), "no calibration faces"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"must be uint8 of shape \(n, 112, 112, 3\)"),
        (np.zeros((2, 112, 112, 3), np.float32), "found float32"),
    ],
)
def test_faces_that_cannot_be_used_are_refused(crops: Batch, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        Quantizer(onnx.ModelProto(), crops, Contract())


def test_variation_keeps_shape_and_repeats_for_a_seed() -> None:
    crops = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), np.uint8)
    before = crops.copy()
    varied = vary_crops(crops, seed=3)
    assert varied.shape == crops.shape
    assert (crops == before).all()
    assert (varied == vary_crops(crops, seed=3)).all()
    assert (varied != vary_crops(crops, seed=4)).any()


def test_portraits_vary_repeat_for_a_seed_and_come_in_the_contract_s_colours() -> None:
    crops = portrait_crops(Contract(), 6, seed=3)
    assert crops.shape == (6, 112, 112, 3)
    assert len(np.unique(crops.reshape(6, -1), axis=0)) == 6
    assert (crops != portrait_crops(Contract(), 6, seed=4)).any()
    np.testing.assert_array_equal(portrait_crops(Contract(color_order="rgb"), 6, seed=3), crops[..., ::-1])


def test_unusual_views_differ_more_from_each_other_than_other_portraits_and_repeat_for_a_seed() -> None:
    usual, unusual = (portrait_crops(Contract(), 64, unusual=unusual) for unusual in (False, True))
    np.testing.assert_array_equal(unusual, portrait_crops(Contract(), 64, unusual=True))
    np.testing.assert_array_equal(unusual[..., ::-1], portrait_crops(Contract(color_order="rgb"), 64, unusual=True))
    for differing in (np.mean, np.std):  # brightness and contrast
        assert np.std(differing(unusual, axis=(1, 2, 3))) > 2 * np.std(differing(usual, axis=(1, 2, 3)))


def test_unusual_views_are_not_made_for_a_network_without_features(small: onnx.ModelProto) -> None:
    contract = Contract(input_size=32)
    Quantizer(small, sample_crops(contract), contract, SOON, lambda: pytest.fail("made in vain"))


@pytest.mark.parametrize("rate", [1, -1])
def test_features_that_are_zero_on_all_portraits_are_not_clipped_on_other_faces(
    build: Callable[..., onnx.ModelProto], rate: int
) -> None:
    """Most features tell how much an image is brighter, or darker, than any view of the portraits."""
    contract = Contract(input_size=32)
    chosen = calibration_crops(CalibrationSource(limit=64), contract)
    grey = np.asarray(prepare_input(chosen.crops, contract)).mean(axis=(1, 2, 3))
    random = np.random.default_rng(0)
    thresholds = np.where(np.arange(32) % 4 == 0, random.uniform(-0.4, 0.4, 32), (rate * grey).max() + 0.01)
    constants = {
        "pixels": np.eye(3, dtype=np.float32)[..., None, None],
        "zeros": np.zeros(3, np.float32),
        "mean": np.full((32, 3), rate / 3, np.float32),
        "thresholds": -thresholds.astype(np.float32),
        "last": random.normal(0, 0.2, (196, 32)).astype(np.float32),
        "points": random.uniform(0, 1, 196).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "pixels", "zeros"], ["same"], kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["same"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "mean", "thresholds"], ["compared"], transB=1),
        helper.make_node("Relu", ["compared"], ["features"]),
        helper.make_node("Gemm", ["features", "last", "points"], ["y"], transB=1),
    ]
    model = build(nodes, constants, ["n", 3, 32, 32])
    levels = np.linspace(128, 225 if rate > 0 else 30, 8).astype(np.uint8)
    others = np.broadcast_to(levels[:, None, None, None], (8, 32, 32, 3))
    expected = run_model(model, prepare_input(others, contract))
    lost = {}
    for unusual in (None, chosen.unusual):
        made = Quantizer(model, chosen.crops, contract, SOON, unusual).make()
        lost[unusual is None] = np.abs(run_model(made.model, prepare_input(others, made.contract)) - expected).max()
    assert lost[False] < 0.02 * np.ptp(expected)
    assert lost[True] > 4 * lost[False]
