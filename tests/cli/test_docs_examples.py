"""The worked examples of the pages on labelling, fine-tuning and own networks run, in order, as they are printed."""

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from pfld_edge.cli import run
from pfld_edge_calib import portraits, read_photo
from pfld_edge_convert.export import export_onnx
from pfld_edge_convert.quantization.settings import QuantizationSettings
from pfld_edge_runtime import FaceLandmarker
from pfld_edge_runtime.crop import crop_windows
from pfld_edge_train.config import TrainConfig, tomllib

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def typed(page: str) -> list[list[str]]:
    lines = "\n".join(blocks(page, "console")).splitlines()
    return [shlex.split(line.removeprefix("$ ")) for line in lines if line.startswith("$ ")]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that looks like the checkout, where commands may leave their results."""
    monkeypatch.chdir(tmp_path)
    for name in ("calib", "runtime", "checkpoints"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def typed_in(folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a line; gives what it said."""
    if words[0] == "python":
        subprocess.run([sys.executable, *words[1:]], cwd=folder, check=True)
    else:
        assert words[0] == "pfld-edge"
        assert run(words[1:]) == 0, f"{' '.join(words)}\n{capsys.readouterr().err}"
    said = capsys.readouterr()
    return said.out + said.err


def test_the_labelling_example_runs(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runnable = [words for words in typed("labelling.md") if "checkpoints/pfld-edge-s.pth" in words]
    assert len(runnable) == 1
    assert "2 faces of 2 photographs" in typed_in(checkout, [*runnable[0], "--workers", "1"], capsys)
    header, *rows = (checkout / "out/labels.csv").read_text().splitlines()
    assert header.startswith("image,weight,x0,y0,")
    assert header.endswith(",c97")
    assert all((checkout / "out" / row.partition(",")[0]).is_file() for row in rows)


def test_the_fine_tuning_example_runs_from_faces_to_a_picture(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in blocks("fine-tuning.md", "python") + blocks("fine-tuning.md", "toml"):
        named = re.match(r"# (\w+\.\w+)\n", text)
        if named:
            (checkout / named.group(1)).write_text(text)
    for number, words in enumerate(typed("fine-tuning.md")):
        if number == 0:
            continue  # the first line shows the option, the example repeats it
        # Few faces and one kind of ranges, to be quick.
        hurry = ["--faces", "16", "--ranges", "minmax"] if "--int8" in words else []
        said = typed_in(checkout, [*words, *hurry], capsys)
        if words[1] == "train":
            assert "last layer: all 68 points follow from wflw-98" in said
    assert (checkout / "out/own.png").is_file()
    assert FaceLandmarker(checkout / "out/own.int8.onnx").contract.landmarks.name == "ibug-68"


def test_a_strangers_network_is_converted_as_checkpoint_and_as_onnx_file(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    # Rounding to nearest, to be quick.
    quick = partial(QuantizationSettings, feedback=False)
    monkeypatch.setattr("pfld_edge_convert.quantization.settings.QuantizationSettings", quick)
    (checkout / "mynets.py").write_text(blocks("your-own-network.md", "python")[0])
    monkeypatch.syspath_prepend(checkout)
    network = importlib.import_module("mynets").build().eval()
    with torch.no_grad():
        # It answers with the mean of the bundled portraits' points, which are those of its crops too.
        boxes, points = (
            np.stack(values) for values in zip(*((f.bbox_xyxy, f.landmarks) for f in portraits()), strict=True)
        )
        mean = crop_windows(boxes, 1.2).to_crop(points).mean(axis=0)
        network.fc.bias.copy_(torch.from_numpy(mean.ravel()))
        network.fc.weight.mul_(0.1)
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, "own.pth")
    hurry = ["--faces", "8", "--ranges", "minmax", "--allow-slower"]
    onnx_file, checkpoint, _verify = typed("your-own-network.md")
    assert "convolutions and products run in 8 bits" in typed_in(checkout, [*checkpoint, *hurry], capsys)
    # A stranger's file: fixed batch, pixels, a second output.
    stranger = export_onnx(network, 64)
    stranger.graph.output.append(onnx.helper.make_tensor_value_info("side", onnx.TensorProto.FLOAT, None))
    pixels = onnx.numpy_helper.from_array(np.array(64, np.float32), "pixels")
    stranger.graph.initializer.append(pixels)
    stranger.graph.node.append(onnx.helper.make_node("Mul", ["landmarks", "pixels"], ["side"]))
    stranger.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(stranger, "strangers.onnx")
    assert run(onnx_file[1:]) == 2
    assert "give --output-name" in capsys.readouterr().err
    said = typed_in(checkout, [*onnx_file, *hurry, "--output-name", "side"], capsys)
    assert "side is read as coordinates in pixels" in said
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255))).detach().numpy()
    for name in ("own", "strangers"):
        found = FaceLandmarker(checkout / f"out/{name}.onnx").predict_crops(images)
        np.testing.assert_allclose(found.reshape(2, -1), expected, atol=1e-5)


@pytest.mark.parametrize("page", ["labelling.md", "fine-tuning.md"])
def test_every_configuration_that_a_page_shows_is_valid(page: str) -> None:
    shown = blocks(page, "toml")
    assert shown
    for text in shown:
        TrainConfig.from_dict({"data": [{"path": "own.csv"}], **tomllib.loads(text)})


@pytest.mark.parametrize("page", ["detectors", "getting-started", "large-sets", "losses", "reading-landmarks", "video"])
def test_the_python_of_the_pages_runs(page: str, checkout: Path) -> None:
    face = portraits()[0]
    image = np.ascontiguousarray(read_photo(face.image)[:, :, ::-1])
    writer = cv2.VideoWriter(str(checkout / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, image.shape[1::-1])
    for _ in range(2):
        writer.write(image)
    writer.release()
    known = {"image": image, "boxes": [face.bbox_xyxy], "boxes_and_scores": np.zeros((0, 5), np.float32)}
    code = [block for block in blocks(f"{page}.md", "python") if "download_detector" not in block]
    if importlib.util.find_spec("supervision") is None:
        code = [re.sub(r".*to_supervision.*\n", "", block) for block in code]
    assert code
    for block in code:
        exec(block, dict(known))  # noqa: S102
