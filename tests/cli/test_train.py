"""`train` from the command line: a run, a refusal to overwrite it, a resume."""

from dataclasses import replace
from pathlib import Path

import pytest

from pfld_edge.cli import run
from pfld_edge_calib import PORTRAITS, portraits
from pfld_edge_runtime import Contract
from pfld_edge_train.checkpoint import load_checkpoint
from pfld_edge_train.face_cache import split_groups


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = (PORTRAITS / "landmarks.csv").read_text().splitlines()
    copies = [f"{PORTRAITS / line}" for line in rows[1:]] * 20
    (tmp_path / "faces.csv").write_text("\n".join([rows[0], *copies]))
    # Two portraits are two groups: a seed is needed for which one of them is held out.
    lines = ["width_factor = 0.25", "input_size = 32", "epochs = 2", "batch_size = 4", "validation = 0.49", "seed = {}"]
    path = tmp_path / "run.toml"
    path.write_text("\n".join(lines).format(_splitting_seed()) + "\n[[data]]\npath = 'faces.csv'\n")
    return path


def _splitting_seed() -> int:
    faces = [replace(face, group=str(face.image)) for face in portraits()]
    return next(seed for seed in range(100) if split_groups([face.group for face in faces], 0.49, seed).sum() == 1)


def test_a_run_is_made_protected_and_resumed(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--config", str(config), "-o", str(tmp_path / "run")]
    assert run(arguments) == 0
    assert load_checkpoint(tmp_path / "run/last.pth").epoch == 1
    capsys.readouterr()
    assert run(arguments) == 2
    assert "give --resume to go on" in capsys.readouterr().err
    assert run([*arguments, "--resume"]) == 0
    expected = ["best.pth", "cache", "curves.png", "ema.pth", "last.pth", "log.csv"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == expected
    trained = ["--qat", str(tmp_path / "run/ema.pth"), "--minutes", "0.01", "-o", str(tmp_path / "int8")]
    assert run([*arguments[:3], *trained]) == 0
    made = Contract.from_json((tmp_path / "int8/ema.int8.json").read_text())
    assert made.calibration.endswith(f"training faces, seed {_splitting_seed()}")


def test_a_missing_configuration_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--config", str(tmp_path / "none.toml"), "-o", str(tmp_path)]) == 2
    assert "none.toml: no such configuration file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--minutes", "5"], "--minutes needs --qat"),
        (["--qat", "a.pth", "--resume"], "leave out --resume and --init"),
        (["--qat", "a.pth", "--init", "b.pth"], "leave out --resume and --init"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    options: list[str], reason: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "--config", str(config), "-o", str(tmp_path / "run"), *options]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
