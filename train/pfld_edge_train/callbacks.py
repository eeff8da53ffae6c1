"""Callbacks of a run, and one that prints lines of text."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

import torch

from pfld_edge_train.face_cache import FaceCache
from pfld_edge_train.run_log import EpochResult
from pfld_edge_train.run_state import RunState

_SECONDS = 30.0
"""Between two lines within an epoch."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run in numbers, before it starts: epochs in all, steps of an epoch, steps done, and lines for the user."""

    epochs: int
    steps: int
    first_step: int
    lines: tuple[str, ...]


class Callback:
    """Callbacks of a run, called in its first process; these do nothing."""

    def begin(self, plan: RunPlan) -> None:
        """Called once, before the first step."""

    def note(self, text: str) -> None:
        """Called with a remark for the user."""

    def epoch(self, number: int, done: int) -> None:
        """Called when epoch `number`, from 0, begins or is resumed after `done` steps."""

    def step(self, loss: float) -> None:
        """Called after a step with its loss, in pixels."""

    def result(self, result: EpochResult) -> None:
        """Called after an epoch."""


class TextProgress(Callback):
    """Prints the plan, a line for each epoch, and one every half minute within an epoch."""

    def __init__(self, output: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        """Take where to write, and a clock in seconds."""
        self._output, self._now = output, now
        self._plan = RunPlan(0, 0, 0, ())
        self._epoch = self._step = 0
        self._written = now()

    def begin(self, plan: RunPlan) -> None:
        """Write the plan."""
        self._plan = plan
        for line in plan.lines:
            self._write(line)

    def note(self, text: str) -> None:
        """Write a remark."""
        self._write(f"Note: {text}")

    def epoch(self, number: int, done: int) -> None:
        """Count from the epoch's first step."""
        self._epoch, self._step = number, done

    def step(self, loss: float) -> None:
        """Write a line if the last one is half a minute old."""
        self._step += 1
        if self._now() - self._written >= _SECONDS:
            place = f"epoch {self._epoch + 1}/{self._plan.epochs}, step {self._step}/{self._plan.steps}"
            self._write(f"{place}: loss {loss:.3f}")

    def result(self, result: EpochResult) -> None:
        """Write an epoch's line."""
        self._write(result_line(result, self._plan.epochs))

    def _write(self, line: str) -> None:
        self._output.write(f"{line}\n")
        self._output.flush()
        self._written = self._now()


def result_line(result: EpochResult, epochs: int) -> str:
    """Describe an epoch of a run of `epochs` epochs in a line."""
    errors = f"validation NME {result.nme:.5f}, hard views {result.hard_nme:.5f}{' (best)' if result.best else ''}"
    speed = f"{result.images_per_second:.0f} images/s"
    return f"epoch {result.epoch + 1}/{epochs}: loss {result.loss:.3f}, {errors}, {speed}"


def plan_of(state: RunState, cache: FaceCache, steps: int) -> RunPlan:
    """Describe a run of `steps` steps an epoch."""
    config, processes = state.config, state.processes
    held_out = int(cache.held_out.sum())
    parameters = sum(parameter.numel() for parameter in state.learner.model.parameters())
    points, size = state.contract.landmarks.num_landmarks, config.input_size
    start = state.origin
    if state.learner.step:
        start += f": epoch {state.next_epoch + 1}, step {state.epoch_step} of {steps}"
    views = f", each also in {config.hard_views} hard view{'s'[: config.hard_views - 1]}" if config.hard_views else ""
    compiled = ", compiled" if config.compile else ""
    precision = "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"
    lines = (
        f"network: {config.model}, {size} x {size} pixels, {points} points, {parameters:,} parameters",
        f"faces: {cache.training_faces:,} to train on, {held_out:,} held out for validation{views}",
        f"steps: {config.epochs} epochs of {steps:,}, {config.batch_size} faces each",
        f"computes on: {_place(processes.device, processes.count)}, {precision}{compiled}",
        start,
    )
    return RunPlan(config.epochs, steps, state.next_epoch * steps + state.epoch_step, lines)


def _place(device: torch.device, processes: int) -> str:
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} thread{'s'[: threads - 1]}"
    return name if processes == 1 else f"{processes} processes, each {name}"
