"""A whole training run: data, epochs, checkpoints, resume."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pfld_edge_train.batches import epoch_order, training_batches, validation_batches
from pfld_edge_train.engine import evaluate, train_steps
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.face_cache import FaceCache, open_cache
from pfld_edge_train.losses import LandmarkLoss, attribute_frequencies
from pfld_edge_train.prefetch import prefetched
from pfld_edge_train.run_log import EpochResult, RunLog
from pfld_edge_train.run_state import RunState, new_run, resumed_run, save_average, save_run
from pfld_edge_train.schedule import learning_rate_at

__all__ = ["EpochResult", "RunState", "fit", "new_run", "resumed_run"]

logger = logging.getLogger(__name__)

LAST, BEST, AVERAGE = "last.pth", "best.pth", "ema.pth"


def fit(
    state: RunState,
    out: Path,
    cache_folder: Path,
    epoch_progress: Callable[[int, int, int], Callable[[float], None]],
    report: Callable[[EpochResult], None],
) -> None:
    """Train to the configuration's last epoch.

    Writes into `out` after every epoch, each file replaced whole: ``last.pth`` to go on from, ``best.pth`` (lowest
    validation NME of the averaged weights), ``ema.pth`` (the averaged weights alone), ``log.csv`` and ``curves.png``;
    ``last.pth`` also every `TrainConfig.checkpoint_steps`. Everything random depends on seed, epoch and step alone: a
    run that was killed at any moment and resumed ends with the weights of one that was not, bit by bit on a CPU.

    Args:
        state: From `new_run` or `resumed_run`; changed in place.
        out: The run's folder.
        cache_folder: Where cut faces are kept between runs.
        epoch_progress: Called with epoch, its steps and those done; gives what is called with each step's loss.
        report: Called after each epoch, in the first process.

    Raises:
        TrainConfigError: There are too few faces, or the batch can't be shared out.
        TrainingDivergedError: The loss became NaN; the last whole checkpoint stays.
    """
    config, processes, trainee = state.config, state.processes, state.trainee
    if processes.first:
        open_cache(config, cache_folder, state.contract)
    processes.wait()
    cache = open_cache(config, cache_folder, state.contract)
    steps = len(epoch_order(cache, config.seed, 0)) // config.batch_size
    if steps == 0 or not cache.held_out.any():
        raise TrainConfigError("too few faces: not one full batch to train on and one face to validate on")
    if config.batch_size % processes.count:
        raise TrainConfigError(
            f"batch_size {config.batch_size} can't be shared out evenly among {processes.count} processes"
        )
    loss_of = LandmarkLoss(config.loss, config.input_size, state.contract, _frequencies(cache))
    out.mkdir(parents=True, exist_ok=True)
    log = RunLog(out, tensorboard=config.tensorboard) if processes.first else None
    logger.info("%d training faces, %d for validation", np.count_nonzero(~cache.held_out), cache.held_out.sum())
    while state.next_epoch < config.epochs:
        epoch, begun, started = state.next_epoch, state.epoch_step, time.perf_counter()
        advance = epoch_progress(epoch, steps, begun)

        def after(loss: float, advance: Callable[[float], None] = advance) -> None:
            state.epoch_step += 1
            state.epoch_loss += loss
            within = config.checkpoint_steps and state.epoch_step % config.checkpoint_steps == 0
            if within and state.epoch_step < steps and processes.first:
                save_run(state, out / LAST)
            advance(loss)

        batches = training_batches(
            cache,
            state.contract,
            config.augment,
            config.batch_size,
            config.seed,
            epoch,
            first_batch=begun,
            rank=processes.rank,
            world_size=processes.count,
            device=processes.device,
        )
        train_steps(trainee, prefetched(batches), loss_of, config, steps, processes, after)
        seconds = time.perf_counter() - started
        points = state.contract.landmarks.normalizing_points
        held_out = validation_batches(cache, state.contract, config.batch_size, device=processes.device)
        nme = evaluate(trainee.average, held_out, points, processes.device)
        result = EpochResult(
            epoch=epoch,
            loss=state.epoch_loss / steps,
            nme=nme,
            best=nme < state.best_nme,
            learning_rate=learning_rate_at(trainee.step - 1, steps, config),
            images_per_second=(steps - begun) * config.batch_size / seconds,
        )
        state.best_nme = min(nme, state.best_nme)
        state.next_epoch, state.epoch_step, state.epoch_loss = epoch + 1, 0, 0.0
        if log is not None:
            _save(state, result, out)
            log.add(result)
            report(result)


def _frequencies(cache: FaceCache) -> torch.Tensor:
    training = ~cache.held_out
    return attribute_frequencies(
        torch.from_numpy(cache.attributes[training]), torch.from_numpy(cache.repeats[training])
    )


def _save(state: RunState, result: EpochResult, out: Path) -> None:
    """Write the checkpoints; the last one last, since it says that the epoch is done."""
    contract = state.contract.replace(nme=round(result.nme, 6), nme_data="validation split of the training faces")
    save_average(state, out / AVERAGE, contract)
    if result.best:
        save_run(state, out / BEST, contract)
    save_run(state, out / LAST, contract)
