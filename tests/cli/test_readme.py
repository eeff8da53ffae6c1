"""What README.md tells people to type works.

Every `$ pfld-edge ...` line of its console blocks is parsed, and run in order in a folder that stands for the checkout,
with settings that make quantization quick. Lines that `make demo` has too are run there alone. Training is only parsed,
for it takes hours. Lines that name the WFLW folder or photographs run where PFLD_EDGE_SHARED says where those are.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import onnx
import pytest

from pfld_edge.cli import cli, run
from pfld_edge_calib import PORTRAITS
from pfld_edge_convert.export import export_onnx
from pfld_edge_convert.reparameterize import reparameterize
from pfld_edge_runtime import FAST_MODEL
from pfld_edge_train.checkpoint import Checkpoint, save_checkpoint
from pfld_edge_train.models import ModelConfig, build_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

CHECKPOINT = ROOT / "checkpoints/pfld-edge-s.pth"
QUICK = ("--faces", "24", "--ranges", "minmax", "--allow-slower")
"""Added to each line with --int8."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def typed() -> list[list[str]]:
    """Give the arguments of each `pfld-edge` line."""
    text = "\n".join(blocks("console")).replace("\\\n", " ")
    return [shlex.split(line, comments=True)[2:] for line in text.splitlines() if line.startswith("$ pfld-edge")]


@pytest.mark.parametrize("arguments", typed(), ids=" ".join)
def test_a_readme_command_is_one_that_the_program_knows(arguments: list[str]) -> None:
    context = click.Context(cli)
    command = cli.get_command(context, arguments[0])
    assert command is not None
    command.make_context(arguments[0], arguments[1:], parent=context)


def of_make_demo() -> list[list[str]]:
    """Give the arguments of each `pfld-edge` line of `make demo`, with README's folder for its results."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(CHECKPOINT)", "checkpoints/pfld-edge-s.pth")
    return [line.replace("demo-out/", "out/").split() for line in re.findall(r"^\t.*/pfld-edge (.*)$", makefile, re.M)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path | None) -> Path:
    """A folder that looks like the checkout after `make demo`, with small networks for what is only converted."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("checkpoints", "out"):
        (folder / name).mkdir()
    for name in ("calib", "train", "checkpoints/pfld-edge-s.pth"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "photo.jpg").symlink_to(PORTRAITS / "grace_hopper.jpg")
    for path in FAST_MODEL.parent.glob("pfld-edge-s.*"):
        shutil.copy(path, folder / "out")
    config = ModelConfig("pfld-edge-m", width_factor=0.25, input_size=32)
    save_checkpoint(folder / "checkpoints/pfld-edge-m.pth", Checkpoint(build_model(config).state_dict(), config))
    published = reparameterize(build_model(ModelConfig("pfld-edge-s1", width_factor=0.25)))
    onnx.save(export_onnx(published, 112), folder / "PFLD_GhostOne_112_1_opt_sim.onnx")
    if shared_folder is not None:
        (folder / "WFLW").symlink_to(shared_folder / "data/WFLW")
        (folder / "PHOTOS").symlink_to(shared_folder / "photos")
    return folder


def runnable(arguments: list[str], checkout: Path) -> bool:
    """Tell whether a line is to be run, and all that it reads is here."""
    needs_shared = bool({"WFLW", "PHOTOS", "out/own.int8.onnx"} & {*arguments})
    return (
        arguments[0] != "train"
        and arguments not in of_make_demo()
        and ((checkout / "WFLW").exists() or not needs_shared)
    )


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"{CHECKPOINT.name} is not there")
def test_the_readme_commands_run_in_order(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("XDG_CACHE_HOME", str(checkout / "cache"))
    for arguments in typed():
        if not runnable(arguments, checkout):
            continue
        status = run([*arguments, *(QUICK if "--int8" in arguments else ())])
        said = capsys.readouterr()
        assert status == 0, f"{' '.join(arguments)}\n{said.out}\n{said.err}"


def test_the_first_readme_commands_are_those_of_make_demo() -> None:
    assert re.search("make .*demo", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    assert [line[0] for line in typed() if line in of_make_demo()] == ["convert", "verify"]


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"{CHECKPOINT.name} is not there")
def test_the_readme_python_runs(checkout: Path) -> None:
    for code in blocks("python"):
        done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        assert "cv2.imread" not in code or done.stdout.startswith("(1, 98, 2) [[")


def test_the_readme_installs_what_a_release_builds_and_tries() -> None:
    lines = "\n".join(blocks("console")).splitlines()
    (line,) = [line for line in lines if "pip install" in line]
    assert line == "$ pip install dist/pfld_edge_runtime-*.whl"
    assert 'out.glob("pfld_edge_runtime-*.whl")' in (ROOT / "tools/release.py").read_text(encoding="utf-8")
    assert re.search("make .*release", (ROOT / ".ci/run").read_text(encoding="utf-8"))


def test_the_tree_in_the_readme_is_the_tree() -> None:
    (tree,) = blocks("text")
    named = [line.split()[0] for line in tree.splitlines() if line and not line.startswith(" ")]
    assert [name for name in named if not (ROOT / name).exists()] == []
