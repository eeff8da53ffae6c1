"""A run between two steps: made anew, read from a checkpoint, written to one."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfld_edge_runtime import Contract, CropRule
from pfld_edge_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pfld_edge_train.config import TrainConfig
from pfld_edge_train.errors import TrainConfigError, TrainingDivergedError
from pfld_edge_train.frozen_layers import freeze_layers
from pfld_edge_train.initial_weights import start_from
from pfld_edge_train.landmark_scheme_config import landmark_scheme
from pfld_edge_train.models import ModelConfig, build_model
from pfld_edge_train.processes import Processes
from pfld_edge_train.same_run import difference
from pfld_edge_train.trainee import Trainee, make_trainee

__all__ = ["REMEDY", "RunState", "new_run", "resumed_run", "save_average", "save_run"]


REMEDY = "lower learning_rate or clip_norm; --resume goes on from the last checkpoint, which is whole"
"""What to do about a run that diverged."""


@dataclass(slots=True)
class RunState:
    """A run between two steps.

    Attributes:
        config: What it is made of.
        contract: Of the network that it makes.
        trainee: What changes.
        processes: Where it runs.
        next_epoch: The epoch that goes on, from 0.
        epoch_step: Steps of it that are done.
        epoch_loss: The sum of their losses.
        best_nme: Lowest score on the validation faces so far, see `ValidationErrors`.
        origin: What weights it started from, in a line.
    """

    config: TrainConfig
    contract: Contract
    trainee: Trainee
    processes: Processes
    next_epoch: int = 0
    epoch_step: int = 0
    epoch_loss: float = 0.0
    best_nme: float = float("inf")
    origin: str = ""


def new_run(config: TrainConfig, init: Path | None = None, processes: Processes | None = None) -> RunState:
    """Start a run.

    Args:
        config: The run.
        init: Checkpoint of the same network, of other landmarks even, to start from; random weights where None.
        processes: Where it runs; one process on the CPU where None.

    Raises:
        CheckpointError: The checkpoint can't be read.
        TrainConfigError: It holds another network.
    """
    processes = processes or Processes(torch.device("cpu"))
    _seed_everything(config.seed)
    contract = Contract(
        model=config.model,
        input_size=config.input_size,
        crop=CropRule(margin=config.landmarks.margin),
        landmarks=landmark_scheme(config.landmarks),
        trained_on=config.trained_on,
    )
    network = _model_config(config, contract)
    model = build_model(network)
    origin = f"starts from random weights, seed {config.seed}"
    if init is not None:
        origin = start_from(init, model, network, contract.landmarks)
    freeze_layers(model, config.finetune.freeze)
    return RunState(config, contract, make_trainee(model, config, processes), processes, origin=origin)


def resumed_run(config: TrainConfig, path: Path, processes: Processes | None = None) -> RunState:
    """Go on from a checkpoint of the same configuration, in the middle of an epoch too.

    Raises:
        CheckpointError: The file is damaged.
        TrainConfigError: It belongs to another configuration, or holds no optimizer.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.config is None or checkpoint.optimizer is None or checkpoint.ema_weights is None:
        raise TrainConfigError(f"{path}: holds weights and no run; start from it with --init, in another folder")
    differs = difference(checkpoint.config, config)
    if differs is not None:
        raise TrainConfigError(
            f"{path}: not a checkpoint of this configuration, {differs}; train into another folder, or set that back"
        )
    state = new_run(config, processes=processes)
    trainee = state.trainee
    trainee.model.load_state_dict(dict(checkpoint.weights))
    trainee.average.load_state_dict(dict(checkpoint.ema_weights))
    if trainee.auxiliary is not None and checkpoint.auxiliary is not None:
        trainee.auxiliary.load_state_dict(dict(checkpoint.auxiliary))
    trainee.optimizer.load_state_dict(checkpoint.optimizer)
    if checkpoint.scaler:
        trainee.scaler.load_state_dict(checkpoint.scaler)
    trainee.step = checkpoint.step
    state.next_epoch, state.best_nme = checkpoint.epoch + 1, checkpoint.best_nme
    state.epoch_step, state.epoch_loss = checkpoint.epoch_step, checkpoint.epoch_loss
    state.origin = f"goes on from {path}"
    return state


def save_run(state: RunState, path: Path, contract: Contract | None = None) -> None:
    """Write all that is needed to go on; see `save_checkpoint`.

    Raises:
        TrainingDivergedError: A weight is no longer a finite number; the file that is there stays.
    """
    trainee = state.trainee
    for network in (trainee.model, trainee.average):
        _check_finite(network.state_dict(), trainee.step)
    checkpoint = Checkpoint(
        weights=trainee.model.state_dict(),
        ema_weights=trainee.average.state_dict(),
        auxiliary=None if trainee.auxiliary is None else trainee.auxiliary.state_dict(),
        optimizer=trainee.optimizer.state_dict(),
        scaler=trainee.scaler.state_dict() or None,
        step=trainee.step,
        epoch=state.next_epoch - 1,
        epoch_step=state.epoch_step,
        epoch_loss=state.epoch_loss,
        best_nme=state.best_nme,
        model=_model_config(state.config, state.contract),
        config=state.config.to_dict(),
        contract=(contract or state.contract).to_dict(),
    )
    save_checkpoint(path, checkpoint)


def save_average(state: RunState, path: Path, contract: Contract) -> None:
    """Write the averaged weights alone, which is what one converts and ships."""
    model = _model_config(state.config, state.contract)
    weights = state.trainee.average.state_dict()
    checkpoint = Checkpoint(
        weights=weights, model=model, step=state.trainee.step, epoch=state.next_epoch - 1, contract=contract.to_dict()
    )
    save_checkpoint(path, checkpoint)


def _check_finite(weights: dict[str, Tensor], step: int) -> None:
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise TrainingDivergedError(f"{name} is not finite after step {step}, nothing was saved: {REMEDY}")


def _seed_everything(seed: int) -> None:
    """For the random start; what comes later draws from generators of its own, so that a run can go on anywhere."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


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
