"""From a torch network to files: right, whole, and self-describing."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pfld_edge_convert import model_file, pipeline
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.export import export_onnx
from pfld_edge_convert.int8_stage import Int8Request
from pfld_edge_convert.model_file import contract_path, read_contract, write_files
from pfld_edge_convert.pipeline import convert, int8_path
from pfld_edge_convert.quantization.settings import QuantizationSettings
from pfld_edge_runtime import (
    ConfidenceCurve,
    Contract,
    FaceAnalyzer,
    FaceLandmarker,
    fingerprint_image,
    prepare_input,
    read_faces,
)
from pfld_edge_train.models import ModelConfig, build_model
from pfld_edge_train.models.edge import Refinement

SIZE = 64
CONTRACT = Contract(model="pfld-edge-s1", input_size=SIZE, nme=0.06, nme_data="a test")


def lively(config: ModelConfig) -> nn.Module:
    """A network with BatchNorm statistics that are not trivial."""
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.7, 1.3)
                module.bias.normal_(0, 0.1)
            elif isinstance(module, Refinement):
                for value in module.parameters():
                    value.normal_(0, 0.02)
    return model


@torch.no_grad()
def heat_map_spreads(network: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    """Standard deviation of each heat map's places."""
    chances = network.logits(inputs).softmax(dim=2).numpy()  # type: ignore[operator]
    places = network.get_buffer("fc.grid").numpy()
    off = places - chances[..., None, :] @ places  # of the mean place
    return np.sqrt((chances * np.square(off).sum(axis=3)).sum(axis=2))


@torch.no_grad()
def refined_spreads(network: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    return (network.with_variances(inputs)[1] / 2).exp().numpy()  # type: ignore[operator]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return lively(ModelConfig("pfld-edge-s1", width_factor=0.5, input_size=SIZE, conv_branches=2)).train()


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def samples(crops: np.ndarray) -> np.ndarray:
    return np.asarray(prepare_input(crops, CONTRACT), np.float32)


def noises(crops: np.ndarray) -> Int8Request:
    return Int8Request(crops, "six noises", QuantizationSettings(ranges="minmax"), allow_slower=True)


@pytest.fixture(scope="module")
def report(model: nn.Module, crops: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> pipeline.ConversionReport:
    output = tmp_path_factory.mktemp("models") / "new folder" / "face.onnx"
    return convert(model, CONTRACT, output, crops, noises(crops))


def test_both_files_answer_as_torch_does(
    report: pipeline.ConversionReport, model: nn.Module, crops: np.ndarray, samples: np.ndarray
) -> None:
    assert [file.path.name for file in report.files] == ["face.onnx", "face.int8.onnx"]
    assert model.training
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(samples)).numpy()
    model.train()
    for file, allowed in zip(report.files, (1e-5, 0.05), strict=True):
        landmarker = FaceLandmarker(file.path)
        difference = np.abs(landmarker.predict_crops(crops).reshape(expected.shape) - expected).max()
        assert difference == pytest.approx(file.max_difference, abs=1e-6)
        assert difference < allowed
        assert file.size == file.path.stat().st_size
    assert report.files[1].size < report.files[0].size


def test_any_batch_gives_each_face_what_it_gets_alone(report: pipeline.ConversionReport, crops: np.ndarray) -> None:
    for file in report.files:
        landmarker = FaceLandmarker(file.path)
        alone = np.concatenate([landmarker.predict_crops(crops[i : i + 1]) for i in range(len(crops))])
        np.testing.assert_allclose(landmarker.predict_crops(crops), alone, atol=1e-5)


def test_files_carry_the_contract_twice_and_a_fingerprint_that_holds(report: pipeline.ConversionReport) -> None:
    for file in report.files:
        contract = FaceLandmarker(file.path).contract
        assert contract == read_contract(onnx.load(file.path))
        assert contract == Contract.from_json(contract_path(file.path).read_text(encoding="utf-8"))
        assert contract.fingerprint is not None
        image = fingerprint_image(contract.fingerprint.seed, SIZE)
        found = FaceLandmarker(file.path).predict_crops(image[None]).reshape(-1)
        assert np.abs(found - np.array(contract.fingerprint.output)).max() < contract.fingerprint.tolerance
    float_contract, int8_contract = (FaceLandmarker(file.path).contract for file in report.files)
    assert (float_contract.quantization, float_contract.nme) == ("none", 0.06)
    assert int8_contract.quantization.startswith("int8")
    assert int8_contract.calibration == "six noises"
    assert int8_contract.nme is None
    assert (int8_contract.input_dtype, int8_contract.layout, int8_contract.target) == ("uint8", "NHWC", "portable")


def test_the_file_tells_nothing_of_the_machine_it_was_made_on(report: pipeline.ConversionReport) -> None:
    for file in report.files:
        content = file.path.read_bytes()
        assert b".py" not in content
        assert str(Path(__file__).parents[2]).encode() not in content
        saved = onnx.load(file.path)
        assert (saved.ir_version, saved.graph.input[0].name, saved.graph.output[0].name) == (8, "image", "landmarks")
        assert [item.version for item in saved.opset_import if not item.domain] == [18]


def test_a_failure_leaves_the_old_files_as_they_were(
    report: pipeline.ConversionReport,
    model: nn.Module,
    crops: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "face.onnx"
    output.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "export_onnx", lambda *_: onnx.load(report.files[0].path))  # seconds faster
    monkeypatch.setattr(pipeline, "make_int8", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(model, CONTRACT, output, crops, noises(crops))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("face.onnx", b"old")]


def test_an_interrupted_write_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    real, calls = model_file.os.fsync, []

    def fail_second(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(descriptor)

    monkeypatch.setattr(model_file.os, "fsync", fail_second)
    with pytest.raises(KeyboardInterrupt):
        write_files({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"can't write .*nowhere"):
        write_files({tmp_path / "nowhere" / "a": b""})


def test_a_contract_of_other_landmarks_is_refused(crops: np.ndarray, tmp_path: Path) -> None:
    other = build_model(ModelConfig("pfld-edge-s", width_factor=0.25, input_size=SIZE, num_landmarks=5))
    with pytest.raises(ConvertError, match="promises 196 outputs a face, the network gives"):
        convert(other, CONTRACT, tmp_path / "x.onnx", crops)
    with pytest.raises(ConvertError, match="samples must be uint8 of shape"):
        convert(other, CONTRACT, tmp_path / "x.onnx", crops[:0])
    assert not list(tmp_path.iterdir())


class Moody(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_the_exporter_says_nothing_and_its_failure_is_one_line(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    exported = export_onnx(build_model(ModelConfig("pfld-edge-s", width_factor=0.25, input_size=32)), 32)
    assert next(node.name for node in exported.graph.node).startswith("blocks.0")
    with pytest.raises(ConvertError, match="can't export Moody") as failure:
        export_onnx(Moody(), 32)
    assert "\n" not in str(failure.value)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_int8_name_keeps_what_comes_before_the_suffix() -> None:
    assert int8_path(Path("a/face.v2.onnx")) == Path("a/face.v2.int8.onnx")
    assert contract_path(Path("a/face.v2.int8.onnx")) == Path("a/face.v2.int8.json")


@pytest.mark.parametrize("kind", ["pfld-edge-m", "pfld-edge-m2"])
def test_heat_maps_keep_their_spread_in_both_files_and_it_becomes_each_points_confidence(
    crops: np.ndarray, tmp_path: Path, kind: str
) -> None:
    network = lively(ModelConfig(kind, width_factor=0.25, input_size=32, num_landmarks=98)).eval()
    small = np.ascontiguousarray(crops[:, :32, :32])
    curve = ConfidenceCurve(0.2, 3.0)
    contract = Contract(model=kind, input_size=32, spread_curve=curve)
    convert(network, contract, tmp_path / "m.onnx", small, noises(small))
    inputs = torch.from_numpy(np.asarray(prepare_input(small, contract), np.float32))
    spreads = refined_spreads(network, inputs) if kind == "pfld-edge-m" else heat_map_spreads(network, inputs)
    for name, allowed in (("m.onnx", 1e-4), ("m.int8.onnx", 0.02)):
        found = FaceLandmarker(tmp_path / name).model.predict_with_spread(small)[1]
        np.testing.assert_allclose(found, spreads, atol=allowed)
        for output, shape in zip(onnx.load(tmp_path / name).graph.output, (196, 98), strict=True):
            assert output.type.tensor_type.shape.dim[1].dim_value == shape
    faces = read_faces(FaceLandmarker(tmp_path / "m.onnx"), small[0], [[0, 0, 26, 26], [6, 6, 32, 32]], "bgr")
    assert faces.landmark_confidence.shape == (2, 98)
    analyze = FaceAnalyzer(lambda _: np.array([[0, 0, 26, 26]]), FaceLandmarker(tmp_path / "m.onnx"), refine=0)
    np.testing.assert_array_equal(analyze(small[0], "bgr").landmark_confidence, faces[0].landmark_confidence)
    given = faces[[0]].to_dicts()[0]["landmark_confidence"]
    np.testing.assert_allclose(given, faces.landmark_confidence[0], atol=1e-4)
