"""The worked examples of the pages on labelling and fine-tuning run, in order, as they are printed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pfld_edge.cli import run
from pfld_edge_runtime import FaceLandmarker
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


@pytest.mark.parametrize("page", ["labelling.md", "fine-tuning.md"])
def test_every_configuration_that_a_page_shows_is_valid(page: str) -> None:
    shown = blocks(page, "toml")
    assert shown
    for text in shown:
        TrainConfig.from_dict({"data": [{"path": "own.csv"}], **tomllib.loads(text)})
