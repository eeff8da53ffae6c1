"""What README.md tells people to type works.

Every `$ pfld-edge ...` line of its console blocks is parsed, and run in order in a folder that stands for the checkout.
Training is only parsed, for it takes hours. Lines that name the WFLW folder, photographs or a published ONNX file run
where PFLD_EDGE_SHARED says where those are.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pfld_edge.cli import cli
from pfld_edge_calib import PORTRAITS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHARED = Path(os.environ["PFLD_EDGE_SHARED"]).resolve() if os.environ.get("PFLD_EDGE_SHARED") else None

CHECKPOINT = ROOT / "checkpoints/pfld-edge-s.pth"


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


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the checkout, where commands may leave their results."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("calib", "train", "checkpoints"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "photo.jpg").symlink_to(PORTRAITS / "grace_hopper.jpg")
    if SHARED is not None:
        (folder / "WFLW").symlink_to(SHARED / "data/WFLW")
        (folder / "PHOTOS").symlink_to(SHARED / "photos")
        for path in (SHARED / "models/reference").glob("*.onnx"):
            (folder / path.name).symlink_to(path)
    return folder


def runnable(arguments: list[str]) -> bool:
    """Tell whether all that a line reads is here."""
    needs_shared = bool({"WFLW", "PHOTOS"} & {*arguments}) or any("ghostone" in word.lower() for word in arguments)
    return arguments[0] != "train" and (SHARED is not None or not needs_shared)


def ran(arguments: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"{CHECKPOINT.name} is not there")
def test_the_readme_commands_run_in_order(checkout: Path) -> None:
    for arguments in filter(runnable, typed()):
        done = ran(["-m", "pfld_edge", *arguments], checkout)
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"{CHECKPOINT.name} is not there")
def test_the_readme_python_runs(checkout: Path) -> None:
    for code in blocks("python"):
        done = ran(["-c", code], checkout)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        assert "cv2.imread" not in code or done.stdout.startswith("(1, 98, 2) [[")


def test_the_readme_installs_what_a_release_builds_and_tries() -> None:
    lines = "\n".join(blocks("console")).splitlines()
    (line,) = [line for line in lines if "pip install" in line]
    assert line == "$ pip install dist/pfld_edge_runtime-*.whl"
    assert 'out.glob("pfld_edge_runtime-*.whl")' in (ROOT / "tools/release.py").read_text()
    assert "make release" in (ROOT / ".ci/run").read_text()


def test_the_tree_in_the_readme_is_the_tree() -> None:
    (tree,) = blocks("text")
    named = [line.split()[0] for line in tree.splitlines() if line and not line.startswith(" ")]
    assert [name for name in named if not (ROOT / name).exists()] == []
