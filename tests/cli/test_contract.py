"""`contract` as a user calls it: shows, writes, and refuses in one line."""

import json
from pathlib import Path

import onnx
import pytest

from pfld_edge.cli import run
from pfld_edge_calib import PORTRAITS
from pfld_edge_convert.model_file import read_contract
from pfld_edge_runtime import CONTRACT_KEY, LandmarkModel

NEEDED = ("color_order=rgb", "mean=0", "scale=255", "margin=1.1", "landmarks=wflw-98")


def settings(*assignments: str) -> list[str]:
    return [part for text in assignments for part in ("--set", text)]


@pytest.fixture
def bare_model(known_model: Path) -> Path:
    """`known_model` without its contract."""
    model = onnx.load(str(known_model))
    model.ClearField("metadata_props")
    onnx.save(model, str(known_model))
    return known_model


def test_contract_shows_what_the_file_carries(known_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["contract", str(known_model), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["contract"]
    assert shown == json.loads(onnx.load(str(known_model)).metadata_props[0].value)
    assert run(["contract", str(known_model)]) == 0
    assert "color_order" in capsys.readouterr().out


def test_a_file_without_contract_says_so(bare_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["contract", str(bare_model)]) == 0
    printed = capsys.readouterr()
    assert "carries no contract" in printed.err
    assert printed.out == ""


def test_set_changes_fields_in_the_file_and_beside_it(known_model: Path) -> None:
    before = read_contract(onnx.load(str(known_model)))
    assert before is not None
    assert run(["contract", str(known_model), *settings("color_order=rgb", "scale=58,57,56", "margin=1.4")]) == 0
    after = LandmarkModel.open(known_model).contract
    assert (after.color_order, after.scale, after.crop.margin) == ("rgb", (58.0, 57.0, 56.0), 1.4)
    assert after.fingerprint is not None
    undone = after.replace(
        color_order=before.color_order, scale=before.scale, crop=before.crop, fingerprint=before.fingerprint
    )
    assert undone == before
    beside = json.loads(known_model.with_suffix(".json").read_text(encoding="utf-8"))
    assert beside == after.to_dict()
    assert sorted(path.name for path in known_model.parent.iterdir()) == ["known.json", "known.onnx"]


def test_a_file_without_contract_gets_one_only_whole(bare_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bare_model.read_bytes()
    assert run(["contract", str(bare_model), *settings(*NEEDED[1:])]) == 2
    assert "--set color_order=..." in capsys.readouterr().err
    assert bare_model.read_bytes() == content
    assert run(["contract", str(bare_model), *settings(*NEEDED)]) == 0
    written = LandmarkModel.open(bare_model).contract
    assert (written.input_size, written.layout, written.mean, written.crop.margin) == (16, "NCHW", (0, 0, 0), 1.1)


def test_a_contract_is_carried_from_file_to_file(known_model: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    assert run(["contract", str(known_model), "-o", str(saved)]) == 0
    carried = onnx.load(str(known_model))
    text = next(entry.value for entry in carried.metadata_props if entry.key == CONTRACT_KEY)
    assert json.loads(saved.read_text(encoding="utf-8")) == json.loads(text)
    assert run(["contract", str(known_model), "--contract", str(saved), *settings("model=other")]) == 0
    assert LandmarkModel.open(known_model).contract.model == "other"


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("margin", "write --set margin=1.2"),
        ("colour=rgb", "no field 'colour'"),
        ("color_order=gray", "expected bgr or rgb"),
        ("margin=wide", "can't be 'wide'"),
        ("margin=90", "0.1 to 10"),
        ("scale=0", "positive"),
        ("mean=1,2", "three finite values"),
        ("landmarks=ibug-68", "136 outputs"),
        ("landmarks=106", "--contract FILE.json"),
        ("layout=NHWC", "promises an input"),
        ("input_size=32", "promises an input"),
    ],
)
def test_set_refuses_in_one_line(
    known_model: Path, assignment: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = known_model.read_bytes()
    assert run(["contract", str(known_model), "--set", assignment]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert known_model.read_bytes() == content
    assert not known_model.with_suffix(".json").exists()


def test_set_keeps_a_json_that_is_no_contract(known_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = known_model.with_suffix(".json")
    other.write_text('{"mine": 1}')
    assert run(["contract", str(known_model), "--set", "margin=1.4"]) == 2
    assert "is in the way" in capsys.readouterr().err
    assert other.read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.onnx"], "none.onnx: no such model file"),
        (["none.onnx", "--find", "--set", "margin=1"], "leave out --set"),
        (["none.onnx", "--data", "faces.csv"], "belong to --find"),
        (["none.onnx", "-o", "out.txt"], ".json"),
    ],
)
def test_a_wrong_call_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["contract", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_find_refuses_a_file_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    for options in ([], ["--find"], ["--set", "margin=1.2"]):
        assert run(["contract", str(path), *options]) == 2
        assert "broken.onnx" in capsys.readouterr().err


def test_find_is_sure_of_nothing_for_a_network_that_finds_no_face(
    known_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["contract", str(known_model), "--find", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["sure"], record["plausible"], record["contract"]) == (False, False, None)
    assert not any(finding["sure"] for finding in record["findings"])


def test_find_skips_and_names_photographs_that_cannot_be_read(
    known_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, first, second = (PORTRAITS / "landmarks.csv").read_text().splitlines()
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    lines = [header, str(PORTRAITS / first), f"broken.jpg,{second.partition(',')[2]}"]
    (tmp_path / "faces.csv").write_text("\n".join(lines) + "\n")
    words = ["contract", str(known_model), "--find", "--data", str(tmp_path / "faces.csv"), "--json"]
    assert run(words) == 2
    said = capsys.readouterr()
    assert "skipped" in said.err
    assert said.err.count("broken.jpg: not an image") == 1
    assert said.err.endswith("Error: 1 file could not be read (named above)\n")
    assert json.loads(said.out)["plausible"] is False
    assert run([*words, "--strict"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    lines[1:] = [lines[2]]
    (tmp_path / "faces.csv").write_text("\n".join(lines) + "\n")
    assert run(words) == 2
    assert "none of the 1 faces that --find chose can be used" in capsys.readouterr().err
