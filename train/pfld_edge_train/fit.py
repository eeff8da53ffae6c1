"""A whole training run: faces, epochs, checkpoints."""

import math
import time
from pathlib import Path

import torch

from pfld_edge_train.batches import epoch_order
from pfld_edge_train.checkpoint_clock import CheckpointClock
from pfld_edge_train.epoch import train_epoch
from pfld_edge_train.errors import TrainConfigError, TrainingDivergedError
from pfld_edge_train.face_cache import FaceCache, open_cache
from pfld_edge_train.interruption import listening_for_signals
from pfld_edge_train.losses import LandmarkLoss, attribute_frequencies
from pfld_edge_train.run_log import EpochResult, RunLog
from pfld_edge_train.run_plan import plan_of
from pfld_edge_train.run_state import REMEDY, RunState, new_run, resumed_run, save_average, save_run
from pfld_edge_train.schedule import learning_rate_at
from pfld_edge_train.tensorboard_log import TensorBoardLog, open_tensorboard
from pfld_edge_train.validation import ValidationErrors, validate
from pfld_edge_train.watcher import Watcher

__all__ = ["AVERAGE", "BEST", "LAST", "EpochResult", "RunState", "fit", "new_run", "resumed_run"]

LAST, BEST, AVERAGE = "last.pth", "best.pth", "ema.pth"


def fit(state: RunState, out: Path, cache_folder: Path, watcher: Watcher | None = None) -> None:
    """Train to the configuration's last epoch.

    Writes into `out` after every epoch, each file replaced whole: ``last.pth`` to go on from, ``best.pth`` (lowest
    error of the averaged weights on the validation faces), ``ema.pth`` (the averaged weights alone), ``log.csv`` and
    ``curves.png``; ``last.pth`` also within an epoch, see `CheckpointClock`, and where a signal stops the run.
    Everything random depends on seed, epoch and step alone: a run that was killed at any moment and resumed ends with
    the weights of one that was not, bit by bit on a CPU.

    Args:
        state: From `new_run` or `resumed_run`; changed in place.
        out: The run's folder.
        cache_folder: Where cut faces are kept between runs.
        watcher: Hears how it goes; in the first process only.

    Raises:
        FaceSetError: A source of faces can't be read.
        TrainConfigError: There are too few faces, or the batch can't be shared out.
        TrainingDivergedError: A number is no longer finite; the last whole checkpoint stays.
        TrainingInterruptedError: A signal stopped the run; it is saved.
        OtherProcessError: Another process of the run failed.
    """
    watcher = watcher if watcher is not None and state.processes.first else Watcher()
    config, processes = state.config, state.processes
    cache = processes.in_turn(lambda: open_cache(config, cache_folder, state.contract))
    with processes.together():
        steps = _steps_per_epoch(state, cache)
        loss_of = LandmarkLoss(config.loss, config.input_size, state.contract, _frequencies(cache))
        out.mkdir(parents=True, exist_ok=True)
    events = None
    if config.tensorboard and processes.first:
        events = open_tensorboard(out / "tensorboard", state.next_epoch)
    watcher.begin(plan_of(state, cache, steps))
    if config.tensorboard and events is None:
        watcher.note("tensorboard = true, but its package is missing: no events; pip install tensorboard")
    clock = CheckpointClock(config.checkpoint_steps, config.checkpoint_minutes)
    with listening_for_signals() as interruption:
        while state.next_epoch < config.epochs:
            begun, started = state.epoch_step, time.perf_counter()
            train_epoch(state, cache, loss_of, steps, out / LAST, clock, interruption, watcher)
            speed = (steps - begun) * config.batch_size / (time.perf_counter() - started)
            errors = _validated(state, cache)
            result = _close_epoch(state, errors, steps, speed)
            if processes.first:
                # The last checkpoint last: it says that the epoch is done, and a killed run does the rest again.
                RunLog(out).add(result)
                _add_events(events, result)
                _save(state, errors, result.best, out)
                clock.restart()
                watcher.result(result)
    if events is not None:
        events.close()


def _validated(state: RunState, cache: FaceCache) -> ValidationErrors:
    config, average = state.config, state.trainee.average
    errors = validate(average, cache, state.contract, config.batch_size, config.hard_views, state.processes)
    if not math.isfinite(errors.score):
        told = f"the error on the validation faces is {errors.score} after epoch {state.next_epoch + 1}: {REMEDY}"
        raise state.processes.everywhere(TrainingDivergedError(told))
    return errors


def _close_epoch(state: RunState, errors: ValidationErrors, steps: int, speed: float) -> EpochResult:
    """Move on to the next epoch; gives what this one did."""
    result = EpochResult(
        epoch=state.next_epoch,
        loss=state.epoch_loss / steps,
        nme=errors.nme,
        hard_nme=errors.hard_nme,
        best=errors.score < state.best_nme,
        learning_rate=learning_rate_at(state.trainee.step - 1, steps, state.config),
        images_per_second=speed,
    )
    state.best_nme = min(errors.score, state.best_nme)
    state.next_epoch, state.epoch_step, state.epoch_loss = state.next_epoch + 1, 0, 0.0
    return result


def _add_events(events: TensorBoardLog | None, result: EpochResult) -> None:
    if events is not None:
        figures = {"loss": result.loss, "nme/validation": result.nme, "nme/hard views": result.hard_nme}
        events.add(figures | {"learning rate": result.learning_rate}, result.epoch)


def _steps_per_epoch(state: RunState, cache: FaceCache) -> int:
    config, count = state.config, state.processes.count
    steps = len(epoch_order(cache, config.seed, 0)) // config.batch_size
    if steps == 0 or not cache.weights[cache.held_out].any():
        raise TrainConfigError("too few faces: not one full batch to train on and one face to validate on")
    if config.batch_size % count:
        raise TrainConfigError(
            f"batch_size {config.batch_size} can't be shared out evenly among {count} processes: choose a multiple"
        )
    return steps


def _frequencies(cache: FaceCache) -> torch.Tensor:
    training = ~cache.held_out
    return attribute_frequencies(
        torch.from_numpy(cache.attributes[training]), torch.from_numpy(cache.repeats[training])
    )


def _save(state: RunState, errors: ValidationErrors, best: bool, out: Path) -> None:
    """Write the checkpoints; the last one last, since it says that the epoch is done."""
    contract = state.contract.replace(nme=round(errors.nme, 6), nme_data="validation split of the training faces")
    save_average(state, out / AVERAGE, contract)
    if best:
        save_run(state, out / BEST, contract)
    save_run(state, out / LAST, contract)
