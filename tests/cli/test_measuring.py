"""`evaluate` and `verify`: the figures are right, and so is the exit status."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pfld_edge.cli import run
from pfld_edge_calib import PORTRAITS, portraits, read_photo
from pfld_edge_convert.calibration import sample_crops
from pfld_edge_convert.model_file import attach_contract, read_contract
from pfld_edge_convert.pipeline import convert
from pfld_edge_runtime import FAST_MODEL, Contract, CropRule, FaceLandmarker
from pfld_edge_train.checkpoint import Checkpoint, load_model, save_checkpoint
from pfld_edge_train.models import ModelConfig, build_model

SHIPPED = Path(__file__).parents[2] / "checkpoints/pfld-edge-s.pth", FAST_MODEL


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint with random weights, and the ONNX file that was made from it."""
    folder = tmp_path_factory.mktemp("measured")
    torch.manual_seed(0)
    config = ModelConfig("pfld-edge-s1", width_factor=0.5, input_size=64)
    model, contract = build_model(config).eval(), Contract(model=config.kind, input_size=64)
    save_checkpoint(folder / "net.pth", Checkpoint(model.state_dict(), config, contract=contract.to_dict()))
    convert(model, contract, folder / "net.onnx", sample_crops(contract))
    return folder / "net.pth", folder / "net.onnx"


def sabotaged(path: Path, target: Path) -> Path:
    """Move the right eye's outer corner by a tenth of the crop."""
    model = onnx.load(str(path))
    bias = next(array for array in model.graph.initializer if list(array.dims) == [196])
    values = numpy_helper.to_array(bias).copy()
    values[2 * 60] += 0.1
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, str(target))
    return target


def test_evaluate_gives_the_nme_of_the_runtimes_landmarks(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(PORTRAITS / "landmarks.csv")
    assert run(["evaluate", *map(str, files), "--data", data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    landmarker, errors = FaceLandmarker(files[1]), []
    for face in portraits():
        assert face.landmarks is not None
        predicted = landmarker(read_photo(face.image), face.bbox_xyxy, "bgr")[0]
        eyes = np.hypot(*(face.landmarks[60] - face.landmarks[72]))
        errors.append(np.hypot(*(predicted - face.landmarks).T).mean() / eyes)
    assert [model["path"] for model in found["models"]] == [str(path) for path in files]
    for model in found["models"]:
        assert model["accuracy"]["all"]["nme"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_verify_passes_a_faithful_file(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", *map(str, files), "--max-drift", "0.01%"]) == 0
    assert "net.onnx" in capsys.readouterr().out


def test_verify_reads_the_output_of_a_reference_that_convert_read(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two outputs that could be landmarks; random weights find no face, so the space must be told too."""
    raw, reference = onnx.load(files[1]), str(tmp_path / "raw.onnx")
    raw.graph.initializer.append(numpy_helper.from_array(np.array(64, np.float32), "side"))
    raw.graph.node.append(onnx.helper.make_node("Mul", [raw.graph.output[0].name, "side"], ["pixels"]))
    del raw.metadata_props[:], raw.graph.output[1:]
    raw.graph.output.append(onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, None))
    onnx.save(raw, reference)
    for told, status in (([], 2), (["--output-space", "pixels"], 0), (["--output-space", "0..1"], 1)):
        named = ["--output-name", "pixels"] if told else []
        assert run(["verify", str(files[1]), "--reference", reference, *named, *told]) == status
    assert run(["verify", str(files[0]), "--reference", str(files[1]), "--output-name", "pixels"]) == 2
    assert "net.onnx tells its output itself" in capsys.readouterr().err.splitlines()[-1]


def test_verify_compares_runtimes_with_a_strangers_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    raw, figures = onnx.load(files[1]), tmp_path / "found.json"
    del raw.metadata_props[:]
    onnx.save(raw, tmp_path / "raw.onnx")
    runtimes = ["--runtime", "onnxruntime", "--runtime", "openvino", "--runtime", "litert"]
    assert (
        run(["verify", str(files[1]), "--reference", str(tmp_path / "raw.onnx"), *runtimes, "--json", str(figures)])
        == 0
    )
    found = json.loads(figures.read_text())
    names = ["raw.onnx", "net.onnx (onnxruntime)", "net.onnx (OpenVINO)"]
    assert [model["name"] for model in found["models"]] == [result["name"] for result in found["runtimes"]] == names
    assert max(model["deviation"]["largest"] for model in found["models"][1:]) < 1e-4
    assert [result["integer_layers"] for result in found["runtimes"]] == [0, 0, 0]
    assert {result["layers"] for result in found["runtimes"]} == {10}


def test_verify_fails_a_file_that_drifted_and_names_the_landmark(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = sabotaged(files[1], tmp_path / "bad.onnx")
    # Random weights err by far more than one moved landmark adds, so the budget is small.
    assert run(["verify", str(files[0]), str(bad), "--max-drift", "0.0001%"]) == 1
    said = capsys.readouterr().out
    drift = next(line for line in said.partition("Drift from")[2].splitlines() if "bad.onnx" in line)
    assert " 60 " in drift
    assert "NO" in drift
    assert "its weights were changed after conversion" in said


def gives_nan(path: Path, target: Path) -> Path:
    """Put NaN into the last bias."""
    model = onnx.load(str(path))
    bias = next(array for array in model.graph.initializer if list(array.dims) == [196])
    bias.CopyFrom(numpy_helper.from_array(np.full(196, np.nan, np.float32), bias.name))
    onnx.save(model, str(target))
    return target


def with_another_contract(path: Path, target: Path, **fields: Any) -> Path:
    """Change the contract alone."""
    model = onnx.load(str(path))
    contract = read_contract(model)
    assert contract is not None
    onnx.save(attach_contract(model, contract.replace(**fields)), str(target))
    return target


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (sabotaged, "the file is not right"),
        (gives_nan, "gives no numbers for 64 of 64 faces"),
        (
            partial(with_another_contract, model="pfld-ghostone"),
            "its contract is not the checkpoint's: model is pfld-ghostone, not pfld-edge-s",
        ),
        (partial(with_another_contract, crop=CropRule(margin=1.0)), "its contract is not the checkpoint's: crop is"),
    ],
)
def test_without_a_budget_a_file_that_is_not_the_checkpoints_fails(
    files: tuple[Path, Path],
    spoil: Callable[[Path, Path], Path],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["verify", *map(str, files)]) == 0
    assert run(["verify", str(files[0]), str(spoil(files[1], tmp_path / "bad.onnx"))]) == 1
    assert words in capsys.readouterr().out


@pytest.mark.skipif(not SHIPPED[0].is_file(), reason=f"{SHIPPED[0].name} is not there")
def test_another_network_fails_without_a_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same shapes and contract, other weights."""
    monkeypatch.setattr("pfld_edge_convert.diagnosis._SCALE_FACES", 2)  # every error of every scale is tried on them
    network, checkpoint = load_model(SHIPPED[0])
    for values in network.state_dict().values():
        if values.is_floating_point() and values.dim() == 4:
            values.mul_(1 + 0.3 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0)))
    other = Checkpoint(network.state_dict(), checkpoint.model, contract=checkpoint.contract)
    save_checkpoint(tmp_path / "other.pth", other)
    assert run(["verify", str(tmp_path / "other.pth"), str(SHIPPED[1]), "--no-fused"]) == 1
    assert "it is another network" in capsys.readouterr().out


def test_predict_names_a_file_that_gives_nan(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, bad = str(portraits()[0].image), gives_nan(files[1], tmp_path / "bad.onnx")
    for more in ([], ["--confidence"], ["--box", "10,10,200,200"]):
        assert run(["predict", photo, "--model", str(bad), "-o", str(tmp_path / "a.png"), *more]) == 2
        said = capsys.readouterr().err
        assert "bad.onnx gave landmarks that are not finite numbers, or far outside of the photograph: " in said
        assert said.endswith("or the file is damaged\n")


def test_several_sets_are_evaluated_together_and_left_out_faces_are_named(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of the portraits whose first face's eye corner is unlabelled."""
    whole = PORTRAITS / "landmarks.csv"
    header, *rows = whole.read_text().splitlines()
    image, *numbers = rows[0].split(",")
    weights = [f"c{point}" for point in range(98)]
    trusts = ["0" if point == 60 else "1" for point in range(98)]
    folder = [",".join([str(PORTRAITS / image), *numbers, *trusts])]
    (tmp_path / "more.csv").write_text("\n".join([",".join([header, *weights]), *folder]) + "\n")
    data = ["--data", str(whole), "--data", str(tmp_path / "more.csv")]
    assert run(["verify", *map(str, files), *data]) == 0
    said = capsys.readouterr().out
    assert (
        f"1 of 3 faces left out: they have no NME, for points 60 and 72 are unlabelled or coincide: {PORTRAITS / image}"
        in said
    )
    assert run(["evaluate", str(files[1]), *data]) == 0
    assert "1 of 3 faces left out" in capsys.readouterr().out


def unusable_set(folder: Path) -> Path:
    """The portraits, and their faces again: in a missing, a broken, and a readable photograph beside the face."""
    header, *rows = (PORTRAITS / "landmarks.csv").read_text().splitlines()
    for row in list(rows):
        image, *numbers = row.split(",")
        (folder / image).write_bytes((PORTRAITS / image).read_bytes())
        rows.append(",".join([f"absent-{image}", *numbers]))
    (folder / "broken.jpg").write_bytes(b"no picture")
    image, *numbers = rows[0].split(",")
    rows.insert(1, ",".join(["broken.jpg", *numbers]))
    rows.append(",".join([image, *(str(float(number) - 5000) for number in numbers)]))
    (folder / "set.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "set.csv"


def test_faces_that_are_listed_twice_are_named(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, *rows = (PORTRAITS / "landmarks.csv").read_text().splitlines()
    (tmp_path / "set.csv").write_text("\n".join([header, *rows, rows[0]]))
    labels, name = [str(tmp_path / "set.csv"), "--images", str(PORTRAITS)], rows[0].partition(",")[0]
    for command in (
        ["evaluate", str(files[1]), "--data", *labels],
        ["verify", *map(str, files), "--data", *labels],
        ["prepare", "csv", *labels, "-o", str(tmp_path / "set"), "--workers", "1"],
    ):
        run(command)
        said = capsys.readouterr().err
        assert f"listed more than once, with the same box, count as often: {PORTRAITS / name}\n" in said
    run(["evaluate", str(files[1]), "--data", str(PORTRAITS / "landmarks.csv")])
    assert "more than once" not in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--workers", "2"], ["--detector", "yunet"]])
def test_faces_that_can_not_be_measured_are_left_out_named_and_counted(
    more: list[str],
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Known:
        box_map = None

        def __call__(self, image: Any, _color: str = "rgb") -> Any:
            return np.concatenate(
                [
                    np.append(face.bbox_xyxy, 0.9)[None].astype(np.float32)
                    for face in portraits()
                    if read_photo(face.image).shape == image.shape
                ]
            )

    monkeypatch.setattr("pfld_edge_runtime.open_detector", lambda _name: Known())
    data, whole = str(unusable_set(tmp_path)), str(PORTRAITS / "landmarks.csv")
    commands = {"evaluate": ["evaluate", str(files[1])], "verify": ["verify", *map(str, files)]}
    if "--detector" in more:
        del commands["verify"]
    for command in commands.values():
        assert run([*command, *more, "--data", whole, "--json", str(tmp_path / "whole.json")]) == 0
        capsys.readouterr()
        assert run([*command, *more, "--data", data, "--json", str(tmp_path / "found.json")]) == 2
        said = capsys.readouterr()
        for name in ("broken.jpg: not an image", "absent-grace_hopper.jpg: no such", "absent-eileen_collins.jpg: no"):
            assert said.err.count(name) == 1
        assert said.err.endswith("Error: 3 files could not be read (named above)\n")
        assert "3 of 6 faces left out: their photographs can't be read" in said.out
        image = portraits()[0].image.name
        assert f"1 of 6 faces left out: they lie outside of their photographs: {tmp_path / image}\n" in said.out
        expected, found = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "found.json"))
        assert found["faces"] == 2
        assert found["outside"] == [str(tmp_path / image)]
        assert len(found["unreadable"]) == 3
        for model, same in zip(found["models"], expected["models"], strict=True):
            assert model["accuracy"] == same["accuracy"]
        assert run([*command, *more, "--data", data, "--strict", "--json", str(tmp_path / "none.json")]) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"Error: {tmp_path}")
        assert said.err.count("\n") == 1
        assert not (tmp_path / "none.json").exists()


def test_a_file_that_fails_gives_1_even_where_photographs_can_not_be_read(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, bad = unusable_set(tmp_path), sabotaged(files[1], tmp_path / "bad.onnx")
    more = ["--robustness", "--report", str(tmp_path / "report.html")]
    assert run(["verify", str(files[0]), str(bad), "--data", str(data), *more]) == 1
    said = capsys.readouterr()
    assert "broken.jpg: not an image" in said.err
    assert "its weights were changed after conversion" in said.out
    assert "Drift from net.pth on 2 faces" in said.out
    assert "NME under corruption, 2 faces" in said.out
    assert "2 of 2 photographs, 4 left out" in (tmp_path / "report.html").read_text()


def test_a_set_in_which_no_face_can_be_measured_says_why(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, *rows = unusable_set(tmp_path).read_text().splitlines()
    chosen = [row for row in rows if row.startswith(("broken", "absent"))] + rows[-1:]
    (tmp_path / "none.csv").write_text("\n".join([header, *chosen]) + "\n")
    for more in ([], ["--workers", "2"]):
        assert run(["evaluate", str(files[1]), "--data", str(tmp_path / "none.csv"), *more]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("Error: no face of 4 can be measured: 3 are in photographs that can't be read (")
        assert ", 1 lie outside of their photographs (" in error
        assert "--images" not in error


def test_a_list_in_another_folder_than_its_photographs_is_told_the_option(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "landmarks.csv"
    listed.write_bytes((PORTRAITS / "landmarks.csv").read_bytes())
    checkpoint, model = map(str, files)
    target = ["-o", str(tmp_path / "new.onnx"), "--int8"]
    commands = {
        "--images": (
            ["evaluate", model, "--data", str(listed)],
            ["convert", checkpoint, *target, "--calibration", str(listed)],
        ),
        "--data-images": (["convert", checkpoint, *target, "--max-drift", "1%", "--data", str(listed)],),
    }
    for option, words in ((option, words) for option, group in commands.items() for words in group):
        assert run(words) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.endswith(f"; {option} names the folder of a list's photographs")


def test_two_portraits_can_not_tell_a_small_drift(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another network that errs as much: no verdict about it can come from two photographs."""
    torch.manual_seed(1)
    config = ModelConfig("pfld-edge-s1", width_factor=0.5, input_size=64)
    contract = Contract(model=config.kind, input_size=64)
    other = tmp_path / "other.pth"
    save_checkpoint(other, Checkpoint(build_model(config).eval().state_dict(), config, contract=contract.to_dict()))
    arguments = ["verify", str(files[0]), str(other), "--no-fused", "--max-drift", "0.0001%"]
    assert run(arguments) == 1
    assert "too few for an interval" in capsys.readouterr().out
    assert run([*arguments, "--accept-inconclusive"]) == 0
    assert run([*arguments, "--accept-undecided"]) == 0


def test_verify_writes_what_machines_read(files: tuple[Path, Path], tmp_path: Path) -> None:
    bad, written = sabotaged(files[1], tmp_path / "bad.onnx"), tmp_path / "out"
    outputs = ["--json", str(written / "v.json"), "--worst", str(written / "faces")]
    assert run(["verify", *map(str, files), str(bad), "--max-drift", "0.0001%", *outputs]) == 1
    record = json.loads((written / "v.json").read_text())
    names = ["net.pth", "net.pth (fused)", "net.onnx", "bad.onnx"]
    assert [(model["name"], model["verdict"]) for model in record["models"]] == list(
        zip(names, ["reference", "pass", "pass", "fail"], strict=True)
    )
    assert record["models"][2]["sha256"] == hashlib.sha256(files[1].read_bytes()).hexdigest()
    pictures = sorted(path.name for path in (written / "faces").iterdir())
    assert len(pictures) == 10
    assert all(name.startswith("bad.onnx-") for name in pictures)


def test_json_on_standard_output_is_alone_there(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", *map(str, files), "--json", "-"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["verdict"] == "unjudged"
    assert "Drift from net.pth" in said.err


def test_a_model_after_json_is_not_written_over(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = files[1].read_bytes()
    assert run(["evaluate", str(files[0]), "--data", "WFLW", "--json", str(files[1])]) == 2
    assert "is no .json file" in capsys.readouterr().err
    assert files[1].read_bytes() == before


@pytest.mark.parametrize("refine", ["0", "1"])
def test_faces_that_a_detector_misses_are_failures(
    refine: str, known_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the two portraits this detector sees one."""
    seen = portraits()[0]

    class OneFace:
        box_map = None

        def __call__(self, image: Any, _color: str = "rgb") -> Any:
            here = image.shape == read_photo(seen.image).shape
            return np.append(seen.bbox_xyxy, 0.9)[None].astype(np.float32) if here else np.zeros((0, 5), np.float32)

    monkeypatch.setattr("pfld_edge_runtime.open_detector", lambda _name: OneFace())
    data = str(PORTRAITS / "landmarks.csv")
    arguments = ["evaluate", str(known_model), "--data", data, "--detector", "mine", "--refine", refine, "--json"]
    assert run(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    figures = record["models"][0]["accuracy"]["all"]
    assert (figures["faces"], figures["misses"]) == (2, 1)
    assert figures["failure_rate_10"] >= 0.5
    assert [face["nme"][0] is None for face in record["each_face"]] == [False, True]


@pytest.mark.parametrize("budget", ["lots", "-1%", "300%", "", "0.5", "0.005"])
def test_a_budget_that_is_no_share_is_refused(
    budget: str, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", *map(str, files), f"--max-drift={budget}"]) == 2
    assert capsys.readouterr().err.startswith("Error: ")


def test_a_file_without_landmarks_is_refused(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(files[1]), "--data", str(PORTRAITS)]) == 2
    assert "no labelled faces here" in capsys.readouterr().err


def test_a_bare_checkpoint_of_another_size_is_measured_at_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(
        build_model(ModelConfig("pfld-edge-s", width_factor=0.5, input_size=64)).state_dict(), tmp_path / "a.pth"
    )
    assert run(["evaluate", str(tmp_path / "a.pth"), "--data", str(PORTRAITS / "landmarks.csv")]) == 0
    assert "carries no contract" in capsys.readouterr().err


def test_a_bare_checkpoint_of_other_points_gets_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(build_model(ModelConfig("pfld-edge-s", num_landmarks=106)).state_dict(), tmp_path / "a.pth")
    assert run(["evaluate", str(tmp_path / "a.pth"), "--data", str(PORTRAITS / "landmarks.csv")]) == 2
    assert "106 landmarks and no contract" in capsys.readouterr().err
