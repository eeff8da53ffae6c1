"""A run that is killed, interrupted or diverges at any moment goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pfld_edge.cli import run
from pfld_edge_train.checkpoint import load_checkpoint
from pfld_edge_train.config import load_config
from pfld_edge_train.engine import CheckpointClock
from pfld_edge_train.errors import TrainingInterruptedError
from pfld_edge_train.fit import fit
from pfld_edge_train.run_log import Callback
from pfld_edge_train.run_state import difference, new_run, resumed_run

from .conftest import WriteConfig

PAPER = "[loss]\npose_weight = 'deviation'\nauxiliary_weight = 0.1"


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: weights, average, auxiliary network, optimizer, place; and the logs but for their speeds."""
    first, second = load_checkpoint(one / "last.pth"), load_checkpoint(other / "last.pth")
    assert (first.step, first.epoch, first.epoch_step) == (second.step, second.epoch, second.epoch_step)
    assert (first.best_nme, first.epoch_loss) == (second.best_nme, second.epoch_loss)
    assert_equal(
        [first.weights, first.ema_weights, first.auxiliary, first.optimizer],
        [second.weights, second.ema_weights, second.auxiliary, second.optimizer],
    )
    logs = [(folder / "log.csv").read_text().splitlines() for folder in (one, other)]
    assert [line.rsplit(",", 1)[0] for line in logs[0]] == [line.rsplit(",", 1)[0] for line in logs[1]]


def assert_equal(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert list(one) == list(other)
        assert_equal(list(one.values()), list(other.values()))
    elif isinstance(one, list | tuple):
        assert isinstance(other, Sequence)
        for mine, yours in zip(one, other, strict=True):
            assert_equal(mine, yours)
    else:
        assert one == other


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from pfld_edge_train.config import load_config
from pfld_edge_train.fit import fit
from pfld_edge_train.run_state import new_run
from pfld_edge_train.run_log import Callback

class Killer(Callback):
    steps = 0
    def step(self, loss):
        self.steps += 1
        if self.steps == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
fit(new_run(load_config(Path(sys.argv[1]))), Path(sys.argv[2]), Path(sys.argv[3]), Killer())
"""


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_killed_within_an_epoch_goes_on_with_the_same_bits(
    kind: str, write_config: WriteConfig, tmp_path: Path
) -> None:
    more = f"{PAPER}\n[optimizer]\nkind = '{kind}'"
    path = write_config("killed", more, checkpoint_steps=2, epochs=2, conv_branches=2)
    config, cache = load_config(path), tmp_path / "cache"
    fit(new_run(config), tmp_path / "straight", cache)
    steps = load_checkpoint(tmp_path / "straight/last.pth").step // 2
    assert steps > 3
    command = [sys.executable, "-c", KILLED, path, tmp_path / "cut", cache, str(steps + 3)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    saved = load_checkpoint(tmp_path / "cut/last.pth")
    assert (saved.epoch, saved.epoch_step) == (0, 2)
    torch.rand(100)  # what else the process does must not matter
    fit(resumed_run(config, tmp_path / "cut/last.pth"), tmp_path / "cut", cache)
    assert_same_run(tmp_path / "cut", tmp_path / "straight")


class SignalAt(Callback):
    """Sends this process a signal after some steps."""

    def __init__(self, number: int, steps: int) -> None:
        self.number, self.steps = number, steps

    def step(self, loss: float) -> None:
        assert np.isfinite(loss)
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_done_says_so(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--config", str(write_config("done", epochs=1)), "-o", str(tmp_path), "--threads", "1"]
    assert run([*arguments, "--cache", str(tmp_path / "cache")]) == 0
    before = (tmp_path / "last.pth").read_bytes()
    capsys.readouterr()
    assert run([*arguments, "--cache", str(tmp_path / "cache"), "--resume"]) == 0
    assert "all 1 epochs are done" in "".join(capsys.readouterr())
    assert (tmp_path / "last.pth").read_bytes() == before


def test_a_signal_saves_the_run_and_says_how_to_go_on(write_config: WriteConfig, tmp_path: Path) -> None:
    config, cache, cut = load_config(write_config("signal")), tmp_path / "cache", tmp_path / "cut"
    fit(new_run(config), tmp_path / "straight", cache)
    steps = load_checkpoint(tmp_path / "straight/last.pth").step // 2
    # Stopped in the second epoch by one signal, resumed, and stopped again by the other.
    state = new_run(config)
    for number, after, done in ((signal.SIGINT, steps + 1, 2), (signal.SIGTERM, 1, 4)):
        handler = signal.getsignal(number)
        said = rf"{number.name} in epoch 2 after step {done} .*--resume"
        with pytest.raises(TrainingInterruptedError, match=said) as stopped:
            fit(state, cut, cache, SignalAt(number, after))
        assert stopped.value.signal == number
        assert signal.getsignal(number) == handler
        state = resumed_run(config, cut / "last.pth")
    fit(state, cut, cache)
    assert_same_run(cut, tmp_path / "straight")


@pytest.mark.parametrize("steps", [0, 3])
def test_the_clock_saves_by_minutes_and_by_steps(steps: int) -> None:
    now = 0.0
    clock = CheckpointClock(steps, 1.0, lambda: now)
    due = []
    for step in range(1, 9):
        now = 25.0 * step
        if clock.due(step):
            due.append(step)
    assert due == [3, 6]
    assert not CheckpointClock(0, 0.0, lambda: 1e9).due(1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 3}, "epochs was 2 and is 3 now"),
        ({"width_factor": 0.5}, "width_factor was 0.25 and is 0.5 now"),
    ],
)
def test_another_configuration_is_told_by_its_first_difference(
    write_config: WriteConfig, changes: dict[str, object], told: str
) -> None:
    saved = load_config(write_config("before")).to_dict()
    found = difference(saved, load_config(write_config("after", **changes)))
    assert found is not None
    assert told in found


def test_where_and_how_a_run_is_done_may_change(write_config: WriteConfig) -> None:
    saved = load_config(write_config("before")).to_dict()
    assert difference(saved, load_config(write_config("after", checkpoint_steps=7, device="auto"))) is None
