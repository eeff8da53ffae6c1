"""A run's schedule, its log, its curves, and a kill at any moment."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pfld_edge_runtime import WFLW_98
from pfld_edge_train.checkpoint import load_checkpoint, load_model
from pfld_edge_train.config import TrainConfig, load_config
from pfld_edge_train.curves import draw_curves
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.fit import fit
from pfld_edge_train.run_log import EpochResult, RunLog
from pfld_edge_train.run_state import new_run
from pfld_edge_train.schedule import learning_rate_at

TOML = """
model = "pfld-edge-s"
width_factor = 0.25
input_size = 32
epochs = {epochs}
batch_size = 8
validation = 0.2
checkpoint_steps = 2
[[data]]
path = "faces.csv"
group_by = "person"
[loss]
{loss}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey pictures with landmarks at random; what is learned doesn't matter here."""
    folder = tmp_path_factory.mktemp("run")
    random = np.random.default_rng(0)
    lines = [",".join(["image", *(f"{axis}{i}" for i in range(98) for axis in "xy")])]
    shape = random.uniform(-1, 1, (98, 2))
    shape = (shape + shape[list(WFLW_98.mirror)] * (-1, 1)) / 2
    shape[60], shape[72] = (-0.6, -0.2), (0.6, -0.2)
    for number in range(60):
        cv2.imwrite(str(folder / f"p{number}_0.png"), random.integers(0, 256, (80, 80, 3), np.uint8))
        points = random.uniform(35, 45, 2) + shape * random.uniform(15, 25)
        lines.append(",".join([f"p{number}_0.png", *(f"{value:.2f}" for value in points.ravel())]))
    (folder / "faces.csv").write_text("\n".join(lines))
    return folder


def written(folder: Path, epochs: int, loss: str = "") -> Path:
    path = folder / f"run{epochs}{abs(hash(loss))}.toml"
    path.write_text(TOML.format(epochs=epochs, loss=loss))
    return path


def command(config: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pfld_edge_train", "--config", str(config), "-o", str(out), "--threads", "1", *more]


def same(one: Path, other: Path) -> bool:
    first, second = load_checkpoint(one), load_checkpoint(other)
    assert first.ema_weights is not None
    assert second.ema_weights is not None
    pairs = ((first.weights, second.weights), (first.ema_weights, second.ema_weights))
    return first.step == second.step and all(torch.equal(a[name], b[name]) for a, b in pairs for name in a)


def test_a_run_killed_within_an_epoch_goes_on_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    config = written(folder, 3, "pose_weight = 'deviation'\nauxiliary_weight = 0.1")
    again = subprocess.run(
        command(config, tmp_path / "straight", "--cache", str(tmp_path / "cache")), check=True, capture_output=True
    )
    assert again.stdout.count(b"epoch ") == 3
    process = subprocess.Popen(command(config, tmp_path / "cut", "--cache", str(tmp_path / "cache")))
    try:
        last = tmp_path / "cut/last.pth"
        deadline = time.monotonic() + 60
        while not last.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert load_checkpoint(last).step < load_checkpoint(tmp_path / "straight/last.pth").step
    subprocess.run(command(config, tmp_path / "cut", "--cache", str(tmp_path / "cache"), "--resume"), check=True)
    assert same(tmp_path / "cut/last.pth", tmp_path / "straight/last.pth")
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("cut", "straight")]
    # All but the speed.
    assert [line.rsplit(",", 1)[0] for line in logs[0]] == [line.rsplit(",", 1)[0] for line in logs[1]]


def test_what_is_shipped_is_the_average_alone(folder: Path, tmp_path: Path) -> None:
    config = load_config(written(folder, 1))
    fit(new_run(config), tmp_path / "run", tmp_path / "cache", lambda *_: lambda _loss: None, lambda _: None)
    average, last = (load_checkpoint(tmp_path / "run" / name) for name in ("ema.pth", "last.pth"))
    assert average.optimizer is None
    assert average.contract is not None
    assert last.ema_weights is not None
    assert all(torch.equal(average.weights[name], last.ema_weights[name]) for name in average.weights)
    load_model(tmp_path / "run/ema.pth")


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_schedule_is_that_of_torch(schedule: str) -> None:
    config = TrainConfig(
        data=(),
        epochs=5,
        optimizer=TrainConfig().optimizer.__class__(learning_rate=0.1, schedule=schedule, warmup_epochs=1),
    )
    steps = 20
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    after = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4 * steps)
        if schedule == "cosine"
        else torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    )
    for step in range(5 * steps):
        if step < steps:
            assert learning_rate_at(step, steps, config) == pytest.approx(0.1 * (step + 1) / steps)
            continue
        assert learning_rate_at(step, steps, config) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        after.step()


def test_the_log_forgets_what_was_done_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for epoch, loss in ((0, 3.0), (1, 2.0), (2, 9.0), (2, 1.0)):
        log.add(EpochResult(epoch, loss, 0.1 / (epoch + 1), best=True, learning_rate=1e-3))
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["0", "3.00000"], ["1", "2.00000"], ["2", "1.00000"]]
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture is not None


@pytest.mark.parametrize("count", [1, 2, 40])
def test_curves_are_drawn_for_any_number_of_epochs(tmp_path: Path, count: int) -> None:
    draw_curves([5.0] * count, [0.1 / (i + 1) for i in range(count)], tmp_path / "curves.png")
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture is not None
    assert (picture != 255).any()


def test_tensorboard_is_asked_for_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainConfigError, match="pip install tensorboard"):
        RunLog(tmp_path, tensorboard=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "tpu"}, "device must be auto, cpu or cuda"),
        ({"checkpoint_steps": -1}, "checkpoint_steps must be 0 or positive"),
        ({"optimizer": {"kind": "sgd"}}, "unknown kind 'sgd'"),
        ({"optimizer": {"warmup_epochs": -1.0}}, "warmup_epochs must be 0 or positive"),
        ({"optimizer": {"ema_decay": 1.0}}, "ema_decay must be from 0"),
        ({"optimizer": {"schedule": "step"}}, "known: cosine, constant"),
    ],
)
def test_impossible_values_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TrainConfigError, match=message):
        TrainConfig.from_dict({"data": [{"path": "x"}], **changes})


def test_two_processes_are_one(folder: Path, tmp_path: Path) -> None:
    config = written(folder, 1, "auxiliary_weight = 0.1")
    cache = ("--cache", str(tmp_path / "cache"))
    subprocess.run(command(config, tmp_path / "one", *cache), check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(
            command(config, tmp_path / "two", *cache),
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [output.count(b"epoch 1/1") for output in printed] == [1, 0]
    one, two = (load_checkpoint(tmp_path / name / "last.pth") for name in ("one", "two"))
    assert one.step == two.step
    for name, value in one.weights.items():
        # Float error: sums of two halves are added in another order, and Adam divides by small numbers.
        torch.testing.assert_close(two.weights[name], value, rtol=1e-2, atol=2e-4)
    first, second = ((tmp_path / name / "log.csv").read_text().splitlines()[1].split(",") for name in ("one", "two"))
    assert float(first[1]) == pytest.approx(float(second[1]), rel=1e-3)
    assert float(first[2]) == pytest.approx(float(second[2]), rel=1e-3)
