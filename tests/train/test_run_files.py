"""A run's schedule, its log and curves, its checkpoints, its processes."""

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from pfld_edge_train.checkpoint import load_checkpoint, load_model
from pfld_edge_train.config import TrainConfig, load_config
from pfld_edge_train.engine import learning_rate_at
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.fit import fit
from pfld_edge_train.learner import Muon
from pfld_edge_train.run_log import Callback, EpochResult, RunLog, RunPlan, TextProgress, draw_curves
from pfld_edge_train.run_state import new_run

from .conftest import WriteConfig

PAPER = "[loss]\nauxiliary_weight = 0.1"


def command(config: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pfld_edge",
        "train",
        "--config",
        str(config),
        "-o",
        str(out),
        "--threads",
        "1",
        *more,
    ]


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


def test_muon_turns_convolutions_as_torch_does_and_the_rest_as_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((8, 4, 3, 3), (12, 3, 1, 1), (6, 1, 3, 3), (5, 6, 1, 1), (7, 4), (9,))
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(value.clone()) for value in starts] for _ in range(2))
    flat = [torch.nn.Parameter(value.flatten(1).clone()) for value in starts[:2]]
    optimizers = [
        # Depthwise convolutions and those of the last layer stay with AdamW.
        Muon([{"params": ours, "weight_decay": 0.1}], 0.01, outputs=ours[3:4]),
        torch.optim.AdamW(theirs[2:], lr=0.01, weight_decay=0.1),
        # Of a fifth of the rate: torch's updates have a root mean square of 0.2 rates, in bfloat16.
        torch.optim.Muon(flat, lr=0.05, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(5):
        for mine, other, row in zip(ours, theirs, [*flat, None, None, None, None], strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
            if row is not None:
                row.grad = mine.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(mine, other) for mine, other in zip(ours[2:], theirs[2:], strict=True))
    for mine, row, start in zip(ours, flat, starts, strict=False):
        moved, wanted = mine.detach().flatten(1) - start.flatten(1), row.detach() - start.flatten(1)
        assert float((moved - wanted).norm() / wanted.norm()) < 0.05


def test_the_log_forgets_what_was_done_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for epoch, loss in ((0, 3.0), (1, 2.0), (2, 9.0), (2, 1.0)):
        log.add(EpochResult(epoch, loss, 0.1 / (epoch + 1), best=True, learning_rate=1e-3))
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["0", "3.00000"], ["1", "2.00000"], ["2", "1.00000"]]
    first = cv2.imread(str(tmp_path / "curves.png"))
    log.close()
    last = cv2.imread(str(tmp_path / "curves.png"))
    assert first is not None
    assert last is not None
    assert (first != last).any()  # that of one epoch, and that of three


@pytest.mark.parametrize("count", [1, 2, 40])
def test_curves_are_drawn_for_any_number_of_epochs(tmp_path: Path, count: int) -> None:
    curve, gaps = ("loss", [5.0 / (i + 1) for i in range(count)]), ("other", [float("nan")] * count)
    draw_curves(list(range(1, count + 1)), [[curve], [curve, gaps]], tmp_path / "curves.png")
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture is not None
    assert (picture != 255).any()


class Notes(Callback):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.lines: tuple[str, ...] = ()

    def begin(self, plan: RunPlan) -> None:
        self.lines = plan.lines

    def note(self, text: str) -> None:
        self.texts.append(text)


def test_a_run_says_what_it_will_do_needs_no_tensorboard_and_ships_the_average_alone(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    notes = Notes()
    fit(new_run(load_config(write_config("plan", epochs=1, tensorboard=True))), tmp_path, tmp_path / "cache", notes)
    text = "\n".join(notes.lines)
    for part in ("pfld-edge-s, 32 x 32 pixels, 98 points", "held out", "1 epochs of", "CPU", "random weights, seed 0"):
        assert part in text
    assert "pip install tensorboard" in notes.texts[0]
    average, last = (load_checkpoint(tmp_path / name) for name in ("ema.pth", "last.pth"))
    assert average.optimizer is None
    assert average.contract is not None
    assert last.ema_weights is not None
    assert all(torch.equal(average.weights[name], last.ema_weights[name]) for name in average.weights)
    load_model(tmp_path / "ema.pth")


def test_tensorboard_gets_the_figures_of_every_epoch(write_config: WriteConfig, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    fit(new_run(load_config(write_config("events", tensorboard=True))), tmp_path, tmp_path / "cache")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = [row.split(",") for row in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert [f"{event.value:.6f}" for event in found.Scalars("nme/validation")] == [row[2] for row in rows]


def test_without_a_terminal_a_line_comes_every_half_minute() -> None:
    now, written = [0.0], io.StringIO()
    progress = TextProgress(written, lambda: now[0])
    progress.begin(RunPlan(2, 100, 0, ("plan",)))
    progress.epoch(0, 0)
    for _ in range(100):
        now[0] += 0.7
        progress.step(1.5)
    assert written.getvalue().splitlines() == [
        "plan",
        "epoch 1/2, step 43/100: loss 1.500",
        "epoch 1/2, step 86/100: loss 1.500",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "tpu"}, "device should be 'auto', 'cpu' or 'cuda', found 'tpu'"),
        ({"checkpoint_steps": -1}, "checkpoint_steps should be greater than or equal to 0"),
        ({"optimizer": {"kind": "sgd"}}, "optimizer.kind should be 'adamw', 'adam' or 'muon', found 'sgd'"),
        ({"optimizer": {"warmup_epochs": -1.0}}, "warmup_epochs should be greater than or equal to 0"),
        ({"optimizer": {"ema_decay": 1.0}}, "ema_decay should be less than 1"),
        ({"optimizer": {"schedule": "step"}}, "schedule should be 'cosine' or 'constant', found"),
    ],
)
def test_impossible_values_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TrainConfigError, match=message):
        TrainConfig.from_dict({"data": [{"path": "x"}], **changes})


@pytest.mark.usefixtures("one_thread")
def test_two_processes_are_one(write_config: WriteConfig, tmp_path: Path) -> None:
    # The biases of heat maps change nothing: Adam moves them by rounding errors alone.
    config = write_config("processes", PAPER, epochs=1, model="pfld-edge-s1")
    fit(new_run(load_config(config)), tmp_path / "one", tmp_path / "cache")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(
            command(config, tmp_path / "two", "--cache", str(tmp_path / "cache")),
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=600)[1] for process in both]
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
