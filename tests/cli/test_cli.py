"""The program itself: help for everything, one line for every mistake, quiet pipes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pfld_edge.cli import COMMANDS, cli, run

README = Path(__file__).parents[2] / "README.md"
PROGRAM = [sys.executable, "-m", "pfld_edge"]


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(name).help
    assert [
        option.name for option in command(name).params if isinstance(option, click.Option) and not option.help
    ] == []
    assert run([name, "--help"]) == 0
    assert f"Usage: pfld-edge {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"pfld-edge {name}" in README.read_text(encoding="utf-8")


def test_every_command_file_is_in_the_table() -> None:
    files = Path(str(sys.modules["pfld_edge"].__file__)).parent.glob("commands/*.py")
    elsewhere = {"import-onnx", "completion"}  # in train.py and cli.py
    assert {path.stem.replace("_", "-") for path in files} - {"--init--"} | elsewhere == set(COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == "pfld-edge 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("predicted x", "No such command 'predicted'"),
        ("--quick", "--quick"),
        ("predict", "give photographs, videos or folders"),
        ("predict x.jpg", "x.jpg: no such photograph"),
        ("predict x.jpg -o out --zoom 3", "--zoom"),
        ("evaluate none.onnx --data none", "none"),
        ("evaluate none.onnx", "--data"),
        ("verify none.pth none.onnx", "none.pth: no such"),
        ("verify none.pth none.onnx --max-drift wide", "'wide' is not a percentage"),
        ("verify none.pth none.onnx --output-space pixels", "tell how to read a --reference"),
        ("convert none.pth", "none.pth"),
        ("import-onnx none.onnx -o out.pth", "none.onnx"),
        ("verify none.pth none.onnx --report out.pdf", "must end in .html, not out.pdf"),
        ("predict x.jpg -o out.gif", "a folder, or end in .png, .jpg or .mp4, not out.gif"),
        ("demo none.onnx --no-open", "none.onnx"),
        ("demo --port 99999", "99999"),
        ("inspect none.onnx", "none.onnx"),
        ("train --config none.toml -o out", "none.toml"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments.split()) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if not line.startswith("Note: ")]
    assert len(errors) == 1
    assert errors[0].startswith("Error: ")
    assert says in errors[0]
    assert printed.out == ""


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Let `pfld-edge inspect` raise what is put in the list."""
    errors: list[BaseException] = []

    @click.command("inspect")
    def broken() -> None:
        raise errors[0]

    monkeypatch.setattr(type(cli), "get_command", lambda *_: broken)
    return errors


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (KeyboardInterrupt(), "Interrupted.", 130),
        (PermissionError(13, "Permission denied", "/out/a.png"), "Error: /out/a.png: Permission denied", 2),
        (OSError(28, "No space left on device"), "Error: No space left on device", 2),
        (click.ClickException("two\nlines"), "Error: two lines", 2),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "Error: this command needs torch: install it with `pip install 'pfld-edge[train]'`",
            2,
        ),
        (click.exceptions.Exit(1), "", 1),
    ],
    ids=["interrupt", "permission", "disk full", "usage", "no torch", "check fell short"],
)
def test_what_goes_wrong_outside_is_one_line(
    raising: list[BaseException], error: BaseException, line: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    raising.append(error)
    assert run(["inspect"]) == status
    assert capsys.readouterr().err.strip() == line


def test_a_bug_keeps_its_traceback(raising: list[BaseException]) -> None:
    raising.append(ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        run(["inspect"])


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run([*PROGRAM, "--help"], stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_piped_output_is_plain() -> None:
    done = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(("words", "offers"), [("pfld-edge ver", "verify"), ("pfld-edge convert --int", "--int8")])
def test_bash_completes_commands_and_options(words: str, offers: str) -> None:
    """What the script from `pfld-edge completion bash` asks the program when a user presses the tab key."""
    asks = {"_PFLD_EDGE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(PROGRAM, env={**os.environ, **asks}, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"plain,{offers}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_reads_the_completion_script(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    assert run(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    subprocess.run([str(shutil.which(shell)), "-n", str(script)], check=True)
