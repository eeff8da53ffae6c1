"""What a user may get wrong is one line that names the thing, said before any work."""

import io
import re
import sys
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pfld_edge.cli import cli, run
from pfld_edge_calib import PORTRAITS
from pfld_edge_runtime import BUNDLED_MODEL, CONTRACT_KEY

FILE = "file.txt"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / FILE).write_text("x")
    return tmp_path


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must fail; its one line, which names no option that the command lacks."""
    assert run([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Error: ")
    assert printed.count("\n") == 1
    command: click.Command | None = cli
    for word in arguments:
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), str(word))
    assert command is not None
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    named = set(re.findall(r"--[a-z]\w[\w-]*", re.sub(r"`pfld-edge [^`]*`", "", printed)))
    assert named <= options | {"--help"}
    return printed


@pytest.mark.parametrize(
    "arguments",
    [
        "convert no.pth -o {}/x.onnx",
        "import-onnx no.onnx -o {}/x.pth",
        "train --config no.toml -o {}/run",
        "train --config no.toml -o run --cache {}/cache",
        "prepare csv no.csv -o {}/shards",
        "label no.jpg --teacher no.pth -o {}/x.csv",
        "predict no.jpg -o {}/x.png",
        "predict no.jpg -o x.png --csv {}/x.csv",
        "predict no.jpg -o x.png --json {}/x.json",
        "verify no.pth no.onnx --report {}/x.html",
        "verify no.pth no.onnx --worst {}/faces",
        "verify no.pth no.onnx --robustness-plot {}/x.png",
        "evaluate no.onnx --data no.csv --worst {}",
        "evaluate no.onnx --data no.csv --resume {}/results",
        "bench no.onnx --plot {}/x.png",
        "inspect no.onnx --plot {}/x.png",
        "contract no.onnx -o {}/x.json",
        "demo --export {}/page",
        "detector download yunet --folder {}",
    ],
)
def test_a_place_that_cannot_be_written_is_said_before_the_work(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{FILE}" in complaint(capsys, *arguments.format(FILE).split())


@pytest.mark.parametrize("command", ["predict  -o out", "convert ", "inspect ", "predict photo.jpg -o "])
def test_an_empty_name_is_not_the_working_folder(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the name is empty" in complaint(capsys, *command.split(" "))


def test_a_table_is_not_written_over_a_model(known_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = known_model.read_bytes()
    photo = PORTRAITS / "grace_hopper.jpg"
    assert "the table must end in .csv" in complaint(capsys, "predict", photo, "-o", "out", "--csv", known_model)
    assert known_model.read_bytes() == before


def test_a_batch_larger_than_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "bench", BUNDLED_MODEL, "--batch", "100000000000", "--rounds", "1", "--starts", "0")
    assert "not enough memory" in said


def test_the_size_of_an_axis_that_no_file_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no file has a free axis 'width'" in complaint(capsys, "bench", BUNDLED_MODEL, "--axis", "width=4")


@pytest.mark.parametrize(
    "command",
    [
        "predict {photo} -o out --model bad.onnx",
        "verify bad.onnx {good}",
        "evaluate bad.onnx --data {labels}",
        "inspect bad.onnx",
        "contract bad.onnx",
        "contract {good} --contract bad.json",
        "bench bad.onnx",
        "demo bad.onnx --export page",
        "label {photo} -o out.csv --teacher bad.onnx --boxes {labels} --flip",
    ],
)
def test_a_damaged_contract_is_said_with_its_file(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(str(BUNDLED_MODEL))
    next(entry for entry in model.metadata_props if entry.key == CONTRACT_KEY).value = "{oops"
    onnx.save(model, str(folder / "bad.onnx"))
    (folder / "bad.json").write_text("{oops")
    (folder / "good.onnx").write_bytes(Path(BUNDLED_MODEL).read_bytes())
    photo, labels = PORTRAITS / "grace_hopper.jpg", PORTRAITS / "landmarks.csv"
    said = complaint(capsys, *command.format(photo=photo, labels=labels, good=folder / "good.onnx").split())
    assert "bad." in said
    assert "not valid JSON" in said


@pytest.mark.parametrize(
    "arguments",
    [
        "predict photo.jpg -o out --detector none.onnx",
        "contract none.onnx --find",
        "contract none.onnx --set color_order=bgr --set mean=0 --set scale=1 --set margin=1.2 --set landmarks=wflw-98",
    ],
)
def test_a_network_without_an_input_is_refused(
    arguments: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones(1, np.float32)))
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(folder / "none.onnx"))
    assert "none.onnx" in complaint(capsys, *arguments.split())


def stranger(folder: Path, kind: str) -> str:
    """A network of 196 outputs, which the kind of its file or of its output makes unusable; the file's name."""
    output, element, count = "y", TensorProto.FLOAT, 7 if kind == "odd" else 196
    weight = np.full((3, count), {"infinite": np.inf}.get(kind, 0.1), np.float32)
    stored = numpy_helper.from_array(weight, "w")
    if kind == "external":
        stored.ClearField("raw_data")
        stored.data_location = TensorProto.EXTERNAL
        stored.external_data.add(key="location", value="gone.data")
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["y"]),
    ]
    if kind in ("float16", "dynamic"):
        output, element = "z", TensorProto.FLOAT16 if kind == "float16" else TensorProto.INT64
        made = helper.make_node("Cast", ["y"], ["z"], to=element)
        nodes.append(made if kind == "float16" else helper.make_node("NonZero", ["y"], ["z"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])]
    outputs = [helper.make_tensor_value_info(output, element, None)]
    if kind == "two":
        nodes.append(helper.make_node("Neg", ["y"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    opsets = [helper.make_opsetid("", 99 if kind == "opset" else 17)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [stored])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=99 if kind == "ir" else 8)
    data = model.SerializeToString()
    content = {"truncated": data[: len(data) // 2], "empty": b"", "torch": b"PK\x03\x04" + bytes(99)}
    (folder / f"{kind}.onnx").write_bytes(content.get(kind, data))
    return f"{kind}.onnx"


_TOLD = "--color bgr --mean 0 --scale 255 --crop-margin 1.2 --landmarks 98 -o out.onnx"


@pytest.mark.parametrize(
    ("kind", "command", "told"),
    [
        ("float16", f"convert {{}} {_TOLD}", "is no face's landmarks"),
        ("dynamic", f"convert {{}} {_TOLD}", "export it in float32"),
        ("dynamic", "contract {} --find", "none of its outputs"),
        ("infinite", f"convert {{}} {_TOLD}", "its weights are damaged"),
        ("odd", f"convert {{}} {_TOLD}", "give the right --landmarks"),
        ("odd", "predict {photo} -o out --model {}", "pfld-edge contract --set"),
        ("two", f"convert {{}} {_TOLD}", "give --output-name"),
        ("two", "predict {photo} -o out --model {}", "pfld-edge convert"),
        ("two", "verify {known} --reference {}", "give --output-name"),
        ("two", "verify {known} --reference {} --output-name x", "none is named 'x'"),
        ("two", "verify {known} --reference {} --output-name y --output-order heat_maps", "can't be 'heat maps'"),
        ("odd", "verify {known} --reference {}", "give the network of that contract"),
        ("ir", "bench {}", "IR version: 99, max supported IR version"),
        ("ir", "contract {} --find", "upgrade onnxruntime"),
        ("ir", f"convert {{}} {_TOLD}", "upgrade onnxruntime"),
        ("opset", "predict {photo} -o out --model {}", "export it with an older opset"),
        ("external", "predict {photo} -o out --model {}", "put the file of its weights beside it"),
        ("external", "inspect {}", "gone.data"),
        ("torch", "inspect {}", "checkpoint of torch, whose name ends in .pth"),
        ("torch", "bench {}", "take another copy"),
        ("truncated", "predict {photo} -o out --model {}", "take another copy"),
        ("truncated", f"convert {{}} {_TOLD}", "is truncated"),
        ("empty", "contract {} --find", "it is empty"),
        ("empty", "inspect {}", "holds no graph"),
    ],
)
def test_a_strangers_file_that_cannot_be_used_is_told_with_what_helps(
    kind: str, command: str, told: str, known_model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"{photo}": PORTRAITS / "grace_hopper.jpg", "{known}": known_model, "{}": stranger(folder, kind)}
    said = complaint(capsys, *(places.get(word, word.replace("_", " ")) for word in command.split(" ")))
    assert f"{kind}.onnx" in said
    assert told in said


NETS = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3 * 16 * 16, 196)

    def forward(self, image):
        return self.fc(image.flatten(1))


class Fails(Net):
    def forward(self, image):
        raise RuntimeError("no such\\nlayer")


class Branches(Net):
    def forward(self, image):
        return self.fc(image.flatten(1)) if image.sum() > 0 else image.flatten(1)[:, :196]
"""


@pytest.mark.parametrize(
    ("file", "factory", "told", "says"),
    [
        ("net.pth", "Fails", _TOLD, "nets:Fails can't run on images (2, 3, 16, 16): RuntimeError: no such layer"),
        ("net.pth", "Net", f"--input-size 32 {_TOLD}", "can't run on images (2, 3, 32, 32): RuntimeError: mat1 and"),
        ("net.pth", "Branches", _TOLD, "can't export Branches: GuardOnDataDependentSymNode: Could not guard"),
        ("net.pth", "Net", "-o out.onnx", "net.pth carries no contract: give --color, --mean, --scale, --crop-margin"),
        ("net.pth", "Net", _TOLD, "is no face's landmarks on the bundled portraits"),
        ("other.pth", "Net", _TOLD, "other.pth: expected a state dict of tensors, found other things, such as 'we"),
        ("script.pt", "Net", _TOLD, 'model = torch.jit.load("script.pt"); torch.save(model.state_dict(), "script.st'),
    ],
)
def test_what_is_wrong_with_ones_own_torch_network_is_said(
    file: str,
    factory: str,
    told: str,
    says: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = torch.nn.Sequential()
    network.fc = torch.nn.Linear(3 * 16 * 16, 196)
    for values in network.parameters():
        values.data.zero_()
    torch.save(network.state_dict(), folder / "net.pth")
    torch.save({"weights": network.state_dict()}, folder / "other.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself
        script = torch.jit.trace(network.fc, torch.zeros(1, 768))  # type: ignore[no-untyped-call]
        torch.jit.save(script, folder / "script.pt")  # type: ignore[no-untyped-call]
    (folder / "strange_nets.py").write_text(NETS)
    monkeypatch.delitem(sys.modules, "strange_nets", raising=False)
    size = [] if "--input-size" in told else ["--input-size", "16"]
    said = complaint(capsys, "convert", file, "--network", f"strange_nets:{factory}", *size, *told.split())
    assert says in said
    assert "--find" not in said


def wflw(folder: Path, value: str) -> Path:
    line = " ".join([*[value] * 196, *["0", "0", "1", "1", "0", "0", "0", "0", "0", "0", "a.jpg"]])
    lists = folder / "WFLW/WFLW_annotations/list_98pt_rect_attr_train_test"
    lists.mkdir(parents=True)
    (lists / "list_98pt_rect_attr_test.txt").write_text(line)
    (folder / "WFLW/WFLW_images").mkdir()
    return folder / "WFLW"


def points_csv(folder: Path, value: str) -> Path:
    path = folder / "points.csv"
    path.write_text("image," + ",".join(f"x{i},y{i}" for i in range(98)) + "\na.jpg," + ",".join([value] * 196))
    return path


def coco(folder: Path, value: str) -> Path:
    points = ",".join([value, value, "2"] * 98)
    path = folder / "coco.json"
    path.write_text(
        '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "keypoints": [' + points + "]}]}"
    )
    return path


def tar(folder: Path, value: str) -> Path:
    notes = '{"landmarks": [' + ",".join([f"[{value}, 1]"] * 98) + "]}"
    path = folder / "faces.tar"
    with tarfile.open(path, "w") as file:
        for name, data in {"a.jpg": b"", "a.json": notes.encode()}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("value", ["1e300", "1" + "0" * 400, "-1e10"])
@pytest.mark.parametrize("made", [wflw, points_csv, coco, tar])
def test_a_coordinate_beyond_any_photograph_is_refused(
    made: Callable[[Path, str], Path], value: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(folder, value)
    assert run(["evaluate", str(BUNDLED_MODEL), "--data", str(data)]) == 2
    printed = capsys.readouterr().err
    # A list's line is an error of the list; a shard's member is skipped, and then none is left.
    assert all(
        line.startswith("Error: " if made is not tar else ("Error: ", "Note: skipped "))
        for line in printed.splitlines()
    )
    assert data.name in printed


def test_photographs_of_which_none_can_be_read_are_not_said_to_be_empty(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.jpg").write_text("x")
    boxes = folder / "boxes.csv"
    boxes.write_text("image,x0,y0,x1,y1\nbad.jpg,0,0,50,50\n")
    arguments = ["label", "-o", "out.csv", "--teacher", BUNDLED_MODEL, "--boxes", boxes, "--flip", "--workers", "1"]
    assert run([str(argument) for argument in arguments]) == 2
    assert "none of 1 photographs can be read" in capsys.readouterr().err
