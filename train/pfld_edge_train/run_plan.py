"""What a run will do, said before it does it."""

from dataclasses import dataclass

import torch

from pfld_edge_train.face_cache import FaceCache
from pfld_edge_train.run_state import RunState

__all__ = ["RunPlan", "plan_of"]


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run in numbers.

    Attributes:
        epochs: Of the whole run.
        steps: Of one epoch.
        first_step: Steps that are done already, of the whole run.
        lines: For people to read.
    """

    epochs: int
    steps: int
    first_step: int
    lines: tuple[str, ...]


def plan_of(state: RunState, cache: FaceCache, steps: int) -> RunPlan:
    """Sum up a run.

    Args:
        state: Where it starts.
        cache: Its faces.
        steps: Of one epoch.
    """
    config, processes = state.config, state.processes
    held_out = int(cache.held_out.sum())
    faces = len(cache.held_out) - held_out
    parameters = sum(parameter.numel() for parameter in state.trainee.model.parameters())
    points, size = state.contract.landmarks.num_landmarks, config.input_size
    start = state.origin
    if state.trainee.step:
        start += f": epoch {state.next_epoch + 1}, step {state.epoch_step} of {steps}"
    views = f", each also in {config.hard_views} hard view{'s'[: config.hard_views - 1]}" if config.hard_views else ""
    lines = (
        f"network: {config.model}, {size} x {size} pixels, {points} points, {parameters:,} parameters",
        f"faces: {faces:,} to train on, {held_out:,} held out for validation{views}",
        f"steps: {config.epochs} epochs of {steps:,}, {config.batch_size} faces each",
        f"computes on: {_place(processes.device, processes.count)}, {_precision(state)}",
        start,
    )
    return RunPlan(config.epochs, steps, state.next_epoch * steps + state.epoch_step, lines)


def _place(device: torch.device, processes: int) -> str:
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} thread{'s'[: threads - 1]}"
    return name if processes == 1 else f"{processes} processes, each {name}"


def _precision(state: RunState) -> str:
    config = state.config
    name = "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"
    return f"{name}, compiled" if config.compile else name
