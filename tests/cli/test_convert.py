"""`convert` and `inspect`, as a user calls them."""

from pathlib import Path

import pytest

from pfld_edge.cli import run
from pfld_edge_runtime import Contract, FaceLandmarker
from pfld_edge_train.checkpoint import Checkpoint, save_checkpoint
from pfld_edge_train.models import ModelConfig, build_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig("pfld-edge-s", width_factor=0.25, input_size=32)
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.pth"
    contract = Contract(model=config.kind, input_size=32, trained_on="nothing").to_dict()
    save_checkpoint(path, Checkpoint(build_model(config).state_dict(), config, contract=contract))
    return path


def test_convert_writes_both_files_and_inspect_reads_them(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "tiny.onnx"
    assert run(["convert", str(checkpoint), "--int8", "--faces", "8", "-o", str(output)]) == 0
    said = capsys.readouterr()
    assert "tiny.int8.onnx" in said.out
    assert "largest difference to torch" in said.out
    assert "bundled portraits" in said.err
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "tiny.int8.json",
        "tiny.int8.onnx",
        "tiny.json",
        "tiny.onnx",
    ]
    assert (
        "8 faces of the two bundled portraits" in FaceLandmarker(output.with_suffix(".int8.onnx")).contract.calibration
    )
    assert run(["inspect", str(output.with_suffix(".int8.onnx"))]) == 0
    inspected = capsys.readouterr().out
    assert "QLinearConv" in inspected
    assert "pfld-edge-s" in inspected
    assert run(["inspect", "--no-layers", str(output)]) == 0
    assert "MACs" in capsys.readouterr().out


def test_inspect_shows_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(checkpoint)]) == 0
    said = capsys.readouterr().out
    assert "pfld-edge-s, width 0.25, 32 px, 98 landmarks" in said
    assert "blocks.0" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "nowhere.pth"], "nowhere.pth"),
        (["convert", "a.onnx"], "import-onnx"),
        (["convert", "{checkpoint}", "--calibration", "faces"], "--calibration needs --int8"),
        (["convert", "{checkpoint}", "-o", "a.tflite"], "must end in .onnx"),
        (["convert", "{checkpoint}", "--int8", "--calibration", "nowhere"], "nowhere: no such folder"),
        (["inspect", "nowhere.onnx"], "nowhere.onnx: no such model file"),
        (["inspect", __file__], "Error: "),
    ],
)
def test_mistakes_get_one_line_and_status_2(
    checkpoint: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([argument.format(checkpoint=checkpoint) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.strip().count("\n") == 0
    assert not list(checkpoint.parent.glob("*.onnx"))


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"not a model at all")
    assert run(["inspect", str(path)]) == 2
    assert "is not an ONNX file" in capsys.readouterr().err
