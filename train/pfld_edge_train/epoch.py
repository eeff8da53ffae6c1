"""The steps of one epoch, or what is left of them."""

import math
import signal
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pfld_edge_train.batches import Batch, training_batches
from pfld_edge_train.checkpoint_clock import CheckpointClock
from pfld_edge_train.engine import train_step
from pfld_edge_train.errors import TrainingDivergedError, TrainingInterruptedError
from pfld_edge_train.face_cache import FaceCache
from pfld_edge_train.frozen_layers import training_mode
from pfld_edge_train.interruption import Interruption
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.prefetch import prefetched
from pfld_edge_train.run_state import REMEDY, RunState, save_run
from pfld_edge_train.step_figures import FigureReader, StepFigures
from pfld_edge_train.watcher import Watcher

__all__ = ["train_epoch"]

_GPU_WORKERS = 4
"""Threads that prepare batches for a GPU; beside a training CPU one is enough."""


def train_epoch(
    state: RunState,
    cache: FaceCache,
    loss_of: LandmarkLoss,
    steps: int,
    path: Path,
    clock: CheckpointClock,
    interruption: Interruption,
    watcher: Watcher,
) -> None:
    """Train from where the epoch stands to its end.

    Args:
        state: Changed in place.
        cache: The faces.
        loss_of: What is minimised.
        steps: Of a whole epoch.
        path: Checkpoint that is written when `clock` says so, and when a signal came.
        clock: Looked at after every step.
        interruption: Likewise.
        watcher: Hears of every step.

    Raises:
        TrainingDivergedError: A loss or a gradient is not finite; nothing that has seen it is saved.
        TrainingInterruptedError: A signal came; the run is saved.
    """
    config, processes = state.config, state.processes
    batches = training_batches(
        cache,
        state.contract,
        config.augment,
        config.batch_size,
        config.seed,
        state.next_epoch,
        first_batch=state.epoch_step,
        rank=processes.rank,
        world_size=processes.count,
        device=processes.device,
    )
    reader = FigureReader(processes.device)
    watcher.epoch(state.next_epoch, state.epoch_step)
    training_mode(state.trainee.runner)

    def take(figures: StepFigures) -> StepFigures:
        _check(figures, state)
        state.epoch_step += 1
        state.epoch_loss += figures.loss
        watcher.step(figures.loss)
        return figures

    workers = _GPU_WORKERS if processes.device.type == "cuda" else 1
    for number, part in enumerate(prefetched(batches, workers=workers), start=state.epoch_step + 1):
        batch = _moved(part, processes.device)
        save = processes.first and number < steps and clock.due(number)
        stop = interruption.signal != 0
        figures = train_step(state.trainee, batch, loss_of, config, steps, processes, save, stop)
        read = [take(known) for known in reader.add(figures)]
        if any(known.save or known.stop for known in read):
            read += [take(known) for known in reader.rest()]
            if processes.first:
                save_run(state, path)
        if any(known.stop for known in read):
            raise processes.everywhere(_interrupted(state, steps, interruption))
    for known in reader.rest():
        take(known)


def _check(figures: StepFigures, state: RunState) -> None:
    """Refuse what is not finite; float16's gradients may be too large at times, its scaler sees to them."""
    step = state.next_epoch, state.epoch_step + 1
    names = {"loss": figures.loss} if state.config.fp16 else {"loss": figures.loss, "gradient": figures.gradient_norm}
    for name, value in names.items():
        if not math.isfinite(value):
            rate = state.config.optimizer.learning_rate
            message = (
                f"the {name} is {value} in epoch {step[0] + 1}, step {step[1]}, at learning_rate {rate:g}: {REMEDY}"
            )
            raise state.processes.everywhere(TrainingDivergedError(message))


def _interrupted(state: RunState, steps: int, interruption: Interruption) -> TrainingInterruptedError:
    number = interruption.signal or signal.SIGTERM
    return TrainingInterruptedError(
        f"stopped by {signal.Signals(number).name} in epoch {state.next_epoch + 1} after step {state.epoch_step} of "
        f"{steps}; it is saved, --resume goes on from there",
        number,
    )


def _moved(batch: Batch, device: torch.device) -> Batch:
    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return replace(
        batch,
        faces=moved(batch.faces),
        landmarks=moved(batch.landmarks),
        weights=moved(batch.weights),
        attributes=moved(batch.attributes),
    )
