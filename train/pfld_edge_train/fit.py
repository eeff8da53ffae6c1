"""A training run: start or resume, faces, epochs, checkpoints."""

import math
import time
from contextlib import closing
from pathlib import Path

import cv2
import torch

from pfld_edge_calib.face import Skip, refuse
from pfld_edge_runtime import Contract
from pfld_edge_train import engine
from pfld_edge_train.batches import epoch_order
from pfld_edge_train.config import TrainConfig
from pfld_edge_train.dense_loss import DenseLandmarkLoss
from pfld_edge_train.errors import TrainConfigError, TrainingDivergedError
from pfld_edge_train.face_cache import FaceCache, open_cache
from pfld_edge_train.losses import LandmarkLoss, attribute_frequencies
from pfld_edge_train.processes import Processes
from pfld_edge_train.run_log import Callback, EpochResult, RunLog, RunPlan, open_tensorboard
from pfld_edge_train.run_state import REMEDY, RunState, new_run, resumed_run, save_average, save_run

LAST, BEST, AVERAGE = "last.pth", "best.pth", "ema.pth"


def train(
    config: TrainConfig,
    out: Path,
    processes: Processes,
    callback: Callback,
    *,
    resume: bool = False,
    init: Path | None = None,
    cache: Path | None = None,
    skip: Skip = refuse,
) -> None:
    """Train into the folder `out`, from the start or, to `resume`, from its last checkpoint; errors as for `fit`.

    `init` is a checkpoint to start from, `cache` the folder of cropped faces (one in `out` where None). A folder that
    holds a run already, or an impossible configuration, is a TrainConfigError; an unreadable checkpoint a
    CheckpointError.
    """
    last = out / LAST
    with processes.together():
        if last.exists() and not resume:
            raise TrainConfigError(f"{out} holds a run already: give --resume to go on, or another --output")
        if not last.exists() and config.finetune.freeze and init is None:
            raise TrainConfigError(
                "[finetune] freezes layers, which are random without a checkpoint to start from: --init"
            )
        state = resumed_run(config, last, processes) if last.exists() else new_run(config, init, processes)
    fit(state, out, cache or out / "cache", callback, skip)


def use_threads(count: int) -> None:
    """Set the number of CPU threads of this process."""
    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def fit(state: RunState, out: Path, cache_folder: Path, callback: Callback | None = None, skip: Skip = refuse) -> None:
    """Train a run, which is changed in place, to the configuration's last epoch.

    Writes into `out` after every epoch, each file by renaming: ``last.pth`` to resume from, ``best.pth`` (lowest error
    of the averaged weights on the validation faces), ``ema.pth`` (the averaged weights alone), ``log.csv`` and, at most
    twice a minute, ``curves.png``; ``last.pth`` also within an epoch, see `CheckpointClock`, and after a signal.
    Cropped faces are kept in `cache_folder`. Weights of a checkpoint that a run starts from are validated first:
    ``best.pth`` is never worse. Everything random depends on seed, epoch and step alone: a run that was killed and
    resumed ends with the same weights, bit by bit on a CPU. The first process alone calls `callback`.

    Raises:
        FaceSetError: A source of faces can't be read.
        TrainConfigError: There are too few faces, or the batch can't be divided among the processes.
        TrainingDivergedError: A number is not finite; the last complete checkpoint stays.
        TrainingInterruptedError: A signal stopped the run; it is saved.
        OtherProcessError: Another process of the run failed.
    """
    callback = callback if callback is not None and state.processes.first else Callback()
    config, processes = state.config, state.processes
    cache = processes.in_turn(
        lambda: open_cache(config, cache_folder, state.contract, skip, retry=processes.first)  # then all have one set
    )
    with processes.together():
        steps = _steps_per_epoch(state, cache)
        attributes, shown = (torch.from_numpy(values[~cache.held_out]) for values in (cache.attributes, cache.repeats))
        frequencies = attribute_frequencies(attributes, shown)
        loss_of: LandmarkLoss | DenseLandmarkLoss
        if config.loss.kind == "dense":
            loss_of = DenseLandmarkLoss(config.loss, state.contract, state.learner.model)
        else:
            loss_of = LandmarkLoss(config.loss, config.input_size, state.contract, frequencies)
        out.mkdir(parents=True, exist_ok=True)
    wanted = config.tensorboard and processes.first
    events = open_tensorboard(out / "tensorboard", state.next_epoch) if wanted else None
    log = RunLog(out, events)
    callback.begin(_plan(state, cache, steps))
    if wanted and events is None:
        callback.note("tensorboard = true, but its package is missing: no events; pip install tensorboard")
    unmeasured = int((cache.held_out & ~cache.measurable(state.contract.landmarks.normalizing_points)).sum())
    if unmeasured:
        callback.note(
            f"{unmeasured} of {int(cache.held_out.sum())} validation faces have no NME (a normalizing point is "
            "unlabelled, or both coincide) and are left out of it"
        )
    if state.fine_tuned and state.learner.step == 0:
        _validate_start(state, cache, out / BEST, callback)
    clock = engine.CheckpointClock(config.checkpoint_steps, config.checkpoint_minutes)
    with closing(log), engine.listening_for_signals() as signals:
        while state.next_epoch < config.epochs:
            begun, started = state.epoch_step, time.perf_counter()
            engine.train_epoch(state, cache, loss_of, steps, out / LAST, clock, signals, callback)
            speed = (steps - begun) * config.batch_size / (time.perf_counter() - started)
            errors = _validated(state, cache)
            result = _close_epoch(state, errors, steps, speed)
            if processes.first:
                log.add(result)
                _save(state, errors, result.best, out)
                clock.restart()
                callback.result(result)


def _validate_start(state: RunState, cache: FaceCache, best: Path, callback: Callback) -> None:
    """Measure the initial weights; they are the best so far."""
    errors = _validated(state, cache)
    state.best_nme = errors.score
    callback.note(f"before training: validation NME {errors.nme:.5f}, hard views {errors.hard_nme:.5f}")
    if state.freezes_statistics(cache.training_faces):
        callback.note(
            f"fewer than {state.config.finetune.statistics_faces:,} faces: BatchNorm keeps the statistics that it has"
        )
    if state.processes.first:
        save_run(state, best, _measured(state, errors))


def _validated(state: RunState, cache: FaceCache) -> engine.ValidationErrors:
    config, average = state.config, state.learner.average
    errors = engine.validate(average, cache, state.contract, config.batch_size, config.hard_views, state.processes)
    if not math.isfinite(errors.score):
        message = f"the error on the validation faces is {errors.score} after epoch {state.next_epoch + 1}: {REMEDY}"
        raise state.processes.everywhere(TrainingDivergedError(message))
    return errors


def _close_epoch(state: RunState, errors: engine.ValidationErrors, steps: int, speed: float) -> EpochResult:
    """Give the figures of an epoch, and begin the next one."""
    result = EpochResult(
        epoch=state.next_epoch,
        loss=state.epoch_loss / steps,
        nme=errors.nme,
        hard_nme=errors.hard_nme,
        best=errors.score < state.best_nme,
        learning_rate=engine.learning_rate_at(state.learner.step - 1, steps, state.config),
        images_per_second=speed,
    )
    state.best_nme = min(errors.score, state.best_nme)
    state.next_epoch, state.epoch_step, state.epoch_loss = state.next_epoch + 1, 0, 0.0
    return result


def _steps_per_epoch(state: RunState, cache: FaceCache) -> int:
    config, count = state.config, state.processes.count
    steps = len(epoch_order(cache, config.seed, 0)) // config.batch_size
    if steps == 0 or not cache.held_out.any():
        raise TrainConfigError("too few faces: not one full batch to train on and one face to validate on")
    if not cache.measurable(state.contract.landmarks.normalizing_points)[cache.held_out].any():
        raise TrainConfigError(
            "no validation face has both normalizing points (the outer eye corners) labelled, so none has an NME; add "
            "such faces, or change validation or seed"
        )
    if config.batch_size % count:
        raise TrainConfigError(
            f"batch_size {config.batch_size} can't be shared out evenly among {count} processes: choose a multiple"
        )
    return steps


def _save(state: RunState, errors: engine.ValidationErrors, best: bool, out: Path) -> None:
    """Write the checkpoints; ``last.pth`` last, since it marks the epoch as done."""
    contract = _measured(state, errors)
    save_average(state, out / AVERAGE, contract)
    if best:
        save_run(state, out / BEST, contract)
    save_run(state, out / LAST, contract)


def _measured(state: RunState, errors: engine.ValidationErrors) -> Contract:
    return state.contract.replace(nme=round(errors.nme, 6), nme_data="validation split of the training faces")


def _plan(state: RunState, cache: FaceCache, steps: int) -> RunPlan:
    config, processes = state.config, state.processes
    held_out = int(cache.held_out.sum())
    parameters = sum(parameter.numel() for parameter in state.learner.model.parameters())
    points, size = state.contract.landmarks.num_landmarks, config.input_size
    start = state.origin
    if state.next_epoch >= config.epochs:
        start += f": all {config.epochs} epochs are done"
    elif state.learner.step:
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
