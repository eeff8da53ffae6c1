"""`convert` and `inspect`, as a user calls them."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pfld_edge.cli import run
from pfld_edge_calib import PORTRAITS
from pfld_edge_convert.benchmark.timing import Times
from pfld_edge_convert.model_file import load_onnx, read_contract
from pfld_edge_runtime import Contract, FaceLandmarker
from pfld_edge_train.checkpoint import Checkpoint, save_checkpoint
from pfld_edge_train.models import ModelConfig, build_model
from pfld_edge_train.models.published import SPELLINGS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig("pfld-edge-s", width_factor=0.25, input_size=32)
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.pth"
    contract = Contract(model=config.kind, input_size=32, trained_on="nothing").to_dict()
    save_checkpoint(path, Checkpoint(build_model(config).state_dict(), config, contract=contract))
    return path


@pytest.fixture(scope="module")
def said(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `convert --int8` says of the checkpoint, and its float file: torch's exporter takes seconds each time."""
    output = tmp_path_factory.mktemp("converted") / "new" / "tiny.onnx"
    arguments = ["--int8", "--faces", "8", "--ranges", "minmax", "--allow-slower", "-o", str(output)]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        assert run(["convert", str(checkpoint), *arguments]) == 0
    return {"out": out.getvalue(), "err": err.getvalue(), "file": str(output)}


@pytest.fixture
def exported(said: dict[str, str]) -> Path:
    return Path(said["file"])


def test_convert_writes_both_files_and_inspect_reads_them(
    said: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(said["file"])
    rows = [line.split("│") for line in said["out"].splitlines() if "│" in line]
    assert "tiny.int8.onnx" in "".join(row[1].strip() for row in rows)  # a table folds long paths
    assert "largest difference to torch" in said["out"]
    assert "bundled portraits" in said["err"]
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
    assert "run in 8 bits" in inspected
    assert "SQNR" in inspected
    plot = tmp_path / "plot.png"
    assert run(["inspect", str(output.with_suffix(".int8.onnx")), "--no-layers", "--plot", str(plot)]) == 0
    picture = cv2.imread(str(plot))
    assert picture is not None
    assert picture.shape[0] > 100
    capsys.readouterr()
    assert "pfld-edge-s" in inspected
    assert run(["inspect", "--no-layers", str(output)]) == 0
    assert "MACs" in capsys.readouterr().out


def test_end_to_end_wraps_both_files_and_other_commands_say_what_they_are(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tiny.onnx"
    arguments = ["--end-to-end", "--int8", "--faces", "8", "--ranges", "minmax", "--allow-slower", "-o", str(output)]
    assert run(["convert", str(exported), *arguments]) == 0
    said = capsys.readouterr().out
    assert "tiny.int8.e2e.onnx" in said
    assert said.count("px to the runtime with the file above") == 2
    names = ("tiny", "tiny.e2e", "tiny.int8", "tiny.int8.e2e")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("json", "onnx")
    }
    wrapped = tmp_path / "tiny.int8.e2e.onnx"
    assert Contract.from_json(wrapped.with_suffix(".json").read_text(encoding="utf-8")).end_to_end
    assert run(["inspect", "--no-layers", str(wrapped)]) == 0
    inspected = capsys.readouterr().out
    assert "image (height, width, 3) uint8 and boxes (faces, columns) float32 in" in inspected
    assert "landmarks (faces, 98, 2) float32 out" in inspected
    assert "run in 8 bits" in inspected
    assert run(["evaluate", str(wrapped), "--data", str(PORTRAITS / "landmarks.csv"), "--turned"]) == 0
    evaluated = capsys.readouterr().out
    assert evaluated.count("tiny.int8.e2e.onnx") > 1
    assert "degrees clockwise" in evaluated
    assert "turned / upright" in evaluated


def test_formats_are_files_of_one_quantization(exported: Path, tmp_path: Path) -> None:
    arguments = ["--int8", "--format", "qdq", "--format", "qdq-int8", "--faces", "8", "--ranges", "minmax"]
    assert run(["convert", str(exported), *arguments, "--allow-slower", "-o", str(tmp_path / "tiny.onnx")]) == 0
    names = ("tiny", "tiny.qdq", "tiny.qdq-int8")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("json", "onnx")
    }
    assert FaceLandmarker(tmp_path / "tiny.qdq-int8.onnx").contract.quantization.startswith(
        "int8 static, QDQ, int8 act"
    )


def test_what_falls_short_is_status_1_and_writes_nothing(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {name: Times(np.full(20, value), np.full(20, value)) for name, value in (("fp32", 1.0), ("int8", 2.0))}
    monkeypatch.setattr("pfld_edge_convert.quantization.mixed_precision.face_times", lambda _: times)
    arguments = ["--int8", "--faces", "8", "--ranges", "minmax", "-o", str(tmp_path / "a.onnx")]
    labelled = ["--max-drift", "90%", "--data", str(PORTRAITS / "landmarks.csv")]
    assert run(["convert", str(exported), *arguments, *labelled]) == 1
    assert "--allow-slower" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert run(["convert", str(exported), *arguments, *labelled, "--allow-slower"]) == 0
    assert "within 90.00%" in capsys.readouterr().out


def test_a_public_projects_checkpoint_is_converted_with_its_protocol_or_what_options_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """106 points: no contract names them, so that their number must be told."""
    config = ModelConfig("pfld-polariszhao", width_factor=0.25, input_size=32, num_landmarks=106)
    theirs = {ours: name for name, ours in SPELLINGS[config.kind].modules().items()}
    state = {name.rpartition(".")[::2]: value for name, value in build_model(config).state_dict().items()}
    torch.save({f"{theirs[layer]}.{leaf}": value for (layer, leaf), value in state.items()}, tmp_path / "a.pth")
    assert run(["convert", str(tmp_path / "a.pth"), "-o", str(tmp_path / "a.onnx")]) == 2
    assert "convert it with --landmarks 106" in capsys.readouterr().err
    told = ["--landmarks", "106", "--color", "rgb", "--output-space", "0..1"]
    assert run(["convert", str(tmp_path / "a.pth"), *told, "-o", str(tmp_path / "a.onnx")]) == 0
    contract = read_contract(load_onnx(tmp_path / "a.onnx"))
    assert contract is not None
    assert (contract.color_order, contract.mean, contract.scale) == ("rgb", (0, 0, 0), (255, 255, 255))
    assert (contract.landmarks.num_landmarks, contract.crop.margin, contract.input_size) == (106, 1.2, 32)


def test_inspect_shows_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(checkpoint)]) == 0
    said = capsys.readouterr().out
    assert "pfld-edge-s, width 0.25, 32 px, 98 landmarks" in said
    assert "blocks.0" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "nowhere.pth"], "nowhere.pth"),
        (["convert", "a.onnx"], "a.onnx: no such model file"),
        (["convert", "{checkpoint}", "--color", "rgb"], "tiny.pth carries a contract: --color can't change it"),
        (["convert", "a.onnx", "--network", "nets:build"], "--network belongs to a checkpoint"),
        (["convert", "a.onnx", "-o", "a.onnx"], "would be written over"),
        (["convert", "{checkpoint}", "--network", "nets:build"], "--network needs --input-size"),
        (["convert", "{checkpoint}", "--network", "nets", "--input-size", "32"], "no module:factory"),
        (["convert", "{checkpoint}", "--network", "re:nets", "--input-size", "32"], "has no attribute 'nets'"),
        (["convert", "{checkpoint}", "--network", "time:time", "--input-size", "32"], "gives float, not a torch"),
        (["convert", "{checkpoint}", "--calibration", "faces"], "--calibration needs --int8"),
        (["convert", "{checkpoint}", "--format", "qdq"], "--format needs --int8"),
        (["convert", "{checkpoint}", "-o", "a.tflite"], "must end in .onnx"),
        (["convert", "{checkpoint}", "--int8", "--calibration", "nowhere"], "nowhere: no such file or folder"),
        (["convert", "{checkpoint}", "--int8", "--detector", "yunet.onnx"], "--detector needs --calibration"),
        (
            [
                "convert",
                "{checkpoint}",
                "--int8",
                "--calibration",
                f"{PORTRAITS}/landmarks.csv",
                "--detector",
                "yunnet",
            ],
            "unknown detector 'yunnet'; known: bundled, yunet, scrfd",
        ),
        (["convert", "{checkpoint}", "--int8", "--max-drift", "0.3%"], "--max-drift needs --data"),
        (["convert", "{checkpoint}", "--max-deviation", "0.005"], "--max-deviation needs --int8"),
        (["convert", "{checkpoint}", "--finetune", "1"], "--finetune needs --int8"),
        (
            ["convert", "{checkpoint}", "--int8", "--max-drift", "1%", "--data", ".", "--max-deviation", "0.005"],
            "give one",
        ),
        (["convert", "{checkpoint}", "--int8", "--target", "mips"], "mips"),
        (["inspect", "{checkpoint}", "--plot", "a.gif"], "must end in .png or .jpg"),
        (["inspect", "{exported}", "--plot", "a.png"], "no quantization report"),
        (["inspect", "nowhere.onnx"], "nowhere.onnx: no such model file"),
        (["inspect", __file__], "Error: "),
    ],
)
def test_mistakes_get_one_line_and_status_2(
    checkpoint: Path, exported: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([argument.format(checkpoint=checkpoint, exported=exported) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.strip().count("\n") == 0
    assert not list(checkpoint.parent.glob("*.onnx"))


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"not a model at all")
    assert run(["inspect", str(path)]) == 2
    assert "is not an ONNX file" in capsys.readouterr().err


def test_calibration_skips_what_cannot_be_read_and_says_so_at_the_end(
    tmp_path: Path, exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in PORTRAITS.glob("*.jpg"):
        (folder / photo.name).write_bytes(photo.read_bytes())
    for name in ("broken.jpg", "._hidden.jpg", "notes.txt"):
        (folder / name).write_bytes(b"no picture")
    Image.new("RGB", (300, 200), "grey").save(folder / "wall.png")
    out = tmp_path / "out.onnx"
    command = ["convert", str(exported), "-o", str(out), "--int8", "--calibration", str(folder), "--ranges", "minmax"]
    assert run([*command, "--strict"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"Error: {folder}/broken.jpg: not an image")
    assert not out.exists()
    assert run([*command, "--allow-slower"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Note: the bundled detector finds the faces of --calibration; --detector takes others"
    assert said[1] == f"Note: {folder}: left out, as no photographs: notes.txt"
    assert said[2].startswith(f"Note: skipped {folder}/broken.jpg: not an image")
    assert said[3] == f"Note: no face found in 1 photograph: {folder}/wall.png"
    assert said[-1] == "Error: 1 file could not be read (named above)"
    assert out.with_suffix(".int8.onnx").is_file()
