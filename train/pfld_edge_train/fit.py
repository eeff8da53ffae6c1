"""A whole training run: data, epochs, checkpoints, resume."""

import csv
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pfld_edge_runtime import Contract, CropRule
from pfld_edge_train.batches import epoch_order, training_batches, validation_batches
from pfld_edge_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pfld_edge_train.config import TrainConfig
from pfld_edge_train.ema import ema_copy
from pfld_edge_train.engine import Trainee, evaluate, make_optimizer, train_one_epoch
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.face_cache import FaceCache, open_cache
from pfld_edge_train.frozen_layers import freeze_layers
from pfld_edge_train.initial_weights import start_from
from pfld_edge_train.landmark_scheme_config import landmark_scheme
from pfld_edge_train.models import ModelConfig, build_model
from pfld_edge_train.prefetch import prefetched

__all__ = ["EpochResult", "RunState", "fit", "new_run", "resumed_run"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What one epoch did.

    Attributes:
        epoch: Counted from 0.
        loss: Mean training loss, wing loss's pixels.
        nme: Of the averaged weights on the validation faces.
        best: This is the best so far.
    """

    epoch: int
    loss: float
    nme: float
    best: bool


@dataclass(slots=True)
class RunState:
    """A run between two epochs; `origin` says in a line what weights it started from."""

    config: TrainConfig
    contract: Contract
    trainee: Trainee
    next_epoch: int = 0
    best_nme: float = float("inf")
    origin: str = ""


def new_run(config: TrainConfig, init: Path | None = None) -> RunState:
    """Start a run.

    Args:
        config: The run.
        init: Checkpoint of the same network, of other landmarks even, to start from; random weights where None.

    Raises:
        CheckpointError: The checkpoint can't be read.
        TrainConfigError: It holds another network.
    """
    torch.manual_seed(config.seed)
    contract = Contract(
        model=config.model,
        input_size=config.input_size,
        crop=CropRule(margin=config.landmarks.margin),
        landmarks=landmark_scheme(config.landmarks),
        trained_on=config.trained_on,
    )
    network = _model_config(config, contract)
    model = build_model(network)
    origin = "" if init is None else start_from(init, model, network, contract.landmarks)
    freeze_layers(model, config.finetune.freeze)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return RunState(config, contract, Trainee(model, ema_copy(model), make_optimizer(model, config)), origin=origin)


def resumed_run(config: TrainConfig, path: Path) -> RunState:
    """Go on from a checkpoint of the same configuration.

    Raises:
        CheckpointError: The file is damaged.
        TrainConfigError: It belongs to another configuration, or holds no optimizer.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.config != config.to_dict() or checkpoint.optimizer is None or checkpoint.ema_weights is None:
        raise TrainConfigError(
            f"{path}: not a checkpoint of this configuration; train into another folder, or drop --resume"
        )
    state = new_run(config)
    state.trainee.model.load_state_dict(dict(checkpoint.weights))
    state.trainee.average.load_state_dict(dict(checkpoint.ema_weights))
    state.trainee.optimizer.load_state_dict(checkpoint.optimizer)
    state.trainee.step = checkpoint.step
    state.next_epoch, state.best_nme = checkpoint.epoch + 1, checkpoint.best_nme
    return state


def fit(
    state: RunState,
    out: Path,
    cache_folder: Path,
    epoch_progress: Callable[[int, int], Callable[[float], None]],
    report: Callable[[EpochResult], None],
) -> None:
    """Train to the configuration's last epoch.

    Writes ``last.pth``, ``best.pth`` (lowest validation NME of the averaged weights) and ``log.csv`` into `out` after
    every epoch, each replaced whole. Everything random depends on seed and epoch alone: a run that was killed and
    resumed ends with the weights of one that was not.

    Args:
        state: From `new_run` or `resumed_run`; changed in place.
        out: The run's folder.
        cache_folder: Where cut faces are kept between runs.
        epoch_progress: Called with epoch and its steps; gives what is called with each step's loss.
        report: Called after each epoch.

    Raises:
        TrainingDivergedError: The loss became NaN; the last whole checkpoint stays.
    """
    config = state.config
    cache = open_cache(config, cache_folder, state.contract)
    steps = len(epoch_order(cache, config.seed, 0)) // config.batch_size
    if steps == 0 or not cache.held_out.any():
        raise TrainConfigError("too few faces: not one full batch to train on and one face to validate on")
    logger.info("%d training faces, %d for validation", np.count_nonzero(~cache.held_out), cache.held_out.sum())
    for epoch in range(state.next_epoch, config.epochs):
        advance = epoch_progress(epoch, steps)
        batches = training_batches(cache, state.contract, config.augment, config.batch_size, config.seed, epoch)
        loss = train_one_epoch(state.trainee, prefetched(batches), config, steps, advance)
        nme = _validate(state.trainee.average, cache, state)
        best = nme < state.best_nme
        state.best_nme = min(nme, state.best_nme)
        _save(state, epoch, nme, out, best)
        result = EpochResult(epoch, loss, nme, best)
        _log(out / "log.csv", result)
        report(result)


def _validate(model: nn.Module, cache: FaceCache, state: RunState) -> float:
    batches = validation_batches(cache, state.contract, state.config.batch_size)
    return evaluate(model, batches, state.contract.landmarks.normalizing_points)


def _save(state: RunState, epoch: int, nme: float, out: Path, best: bool) -> None:
    contract = state.contract.replace(nme=round(nme, 6), nme_data="validation split of the training faces")
    checkpoint = Checkpoint(
        weights=state.trainee.model.state_dict(),
        ema_weights=state.trainee.average.state_dict(),
        optimizer=state.trainee.optimizer.state_dict(),
        step=state.trainee.step,
        epoch=epoch,
        best_nme=state.best_nme,
        model=_model_config(state.config, state.contract),
        config=state.config.to_dict(),
        contract=contract.to_dict(),
    )
    out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out / "last.pth", checkpoint)
    if best:
        save_checkpoint(out / "best.pth", checkpoint)


def _log(path: Path, result: EpochResult) -> None:
    """Add a line to the log; lines of epochs that a killed run did again are dropped first."""
    rows = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row[0] != "epoch" and int(row[0]) < result.epoch]
    rows.append([str(result.epoch), f"{result.loss:.5f}", f"{result.nme:.6f}"])
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        csv.writer(file).writerows([["epoch", "loss", "validation_nme"], *rows])
    partial.replace(path)


def _model_config(config: TrainConfig, contract: Contract) -> ModelConfig:
    return ModelConfig(
        kind=config.model,
        width_factor=config.width_factor,
        input_size=config.input_size,
        num_landmarks=contract.landmarks.num_landmarks,
        conv_branches=config.conv_branches,
        fused=config.finetune.fused,
        pointwise_scale=config.finetune.pointwise_scale,
    )
