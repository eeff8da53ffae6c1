"""`inspect` of one file and of two, as a user calls it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from pfld_edge.cli import run
from pfld_edge_convert.model_file import attach_contract, read_contract
from pfld_edge_convert.reparameterize import reparameterize, training_form
from pfld_edge_runtime import FAST_MODEL
from pfld_edge_train.blocks import MobileOneBlock
from pfld_edge_train.models import ModelConfig, build_model

DOCS = Path(__file__).parents[2] / "docs/benchmarking.md"


@pytest.fixture
def moved(known_model: Path) -> Path:
    """`known_model` with one landmark moved by a tenth of the crop, and RGB for BGR."""
    model = onnx.load(str(known_model))
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "points")
    values = numpy_helper.to_array(bias).copy()
    values[7] += 0.1
    bias.CopyFrom(numpy_helper.from_array(values, "points"))
    contract = read_contract(model)
    assert contract is not None
    path = known_model.with_name("moved.onnx")
    onnx.save(attach_contract(model, contract.replace(color_order="rgb")), str(path))
    return path


def test_inspect_tells_fusion_and_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(FAST_MODEL)]) == 0
    printed = capsys.readouterr().out
    assert "MACs" in printed
    assert "onnxruntime runs here: 9 QLinearConv" in printed


def test_inspect_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(FAST_MODEL), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["format"] == "pfld-edge-inspect-1"
    # With those by zero of a first convolution that reads four pixels at a time.
    assert record["macs"] == sum(layer["macs"] for layer in record["layers"]) == 37_872_296
    assert record["contract"]["layout"] == "NHWC"
    assert record["fusion"]["running"]["QLinearConv"] == 9
    assert record["quantization"]["faces"] > 0
    assert [layer["runs_as"] for layer in record["layers"]].count("QLinearConv") == 9
    explained = set(re.findall(r"`(\w+)`", DOCS.read_text(encoding="utf-8")))
    assert {*record, *record["layers"][-1], *record["fusion"]} <= explained
    assert run(["inspect", str(FAST_MODEL), "--json", "--no-layers"]) == 0
    assert "layers" not in json.loads(capsys.readouterr().out)


def test_inspect_shows_what_differs(known_model: Path, moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(known_model), str(moved)]) == 0
    printed = capsys.readouterr().out
    assert "color_order" in printed
    assert "input_size" not in printed
    assert "1 of 1 layers that both have are identical" in printed
    assert "differ by at most 0.1 of the crop" in printed
    assert run(["inspect", str(known_model), str(moved), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["differences"]
    explained = set(re.findall(r"`(\w+)`", DOCS.read_text(encoding="utf-8")))
    assert {*found, *found["weights"][0], *found["contract"][0]} <= explained
    assert found["largest_landmark_difference"] == pytest.approx(0.1, abs=1e-6)
    assert [item["name"] for item in found["contract"]] == ["color_order"]


def test_inspect_finds_no_difference_in_one_file(known_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(known_model), str(known_model)]) == 0
    assert "no difference found" in capsys.readouterr().out


def test_inspect_compares_a_network_that_finds_no_landmarks(
    known_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "other",
        [value("x", onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [value("y", onnx.TensorProto.FLOAT, None)],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "other.onnx")
    assert run(["inspect", str(known_model), str(tmp_path / "other.onnx")]) == 0
    printed = capsys.readouterr().out
    assert "layers with weights in the first file only" in printed
    assert "landmarks on crops" not in printed
    assert run(["inspect", str(tmp_path / "other.onnx")]) == 0
    assert "size is free; counted at 320 px" in capsys.readouterr().out


@pytest.mark.parametrize("width", [40, 64, 100, 160])
def test_tables_fit_terminals_of_every_width(
    known_model: Path, moved: Path, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(["inspect", str(known_model)]) == 0
    assert run(["inspect", str(known_model), str(moved)]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert table
    assert max(map(len, table)) <= width


def test_an_onnx_file_is_inspected_without_torch() -> None:
    code = (
        "import sys; from pfld_edge.cli import run;"
        f"status = run(['inspect', {str(FAST_MODEL)!r}]); sys.exit(status or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_checkpoint_says_what_convert_merges() -> None:
    model = build_model(ModelConfig("pfld-ghostone", width_factor=0.25, input_size=64, conv_branches=3))
    fused = reparameterize(model)
    said = training_form(model, fused)
    blocks = [module for module in model.modules() if isinstance(module, MobileOneBlock)]
    weights = [value for name, value in model.state_dict().items() if name.endswith("weight") and value.ndim == 4]
    assert f"{len(weights)} convolutions" in said
    assert f"{len(blocks)} blocks of up to 5 branches" in said  # three k x k, 1x1, identity
    assert f"{sum(p.numel() for p in fused.parameters()) / 1e6:.3f} M parameters" in said.rpartition("into")[2]
    assert "nothing to merge" in training_form(fused, fused)
    norm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert "1 BatchNorm" in training_form(norm, reparameterize(norm))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{known}", "none.onnx"], "none.onnx: no such model file"),
        (["."], "no such model file"),
        (["{known}", "."], "no such model file"),
        (["{known}", __file__], "Error: "),
        (["{known}", "{known}", "--plot", "a.png"], "leave out the other"),
        (["{known}", "{known}", "{known}"], "unexpected extra argument"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], says: str, known_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", *(argument.format(known=known_model) for argument in arguments)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert says in errors[0]
