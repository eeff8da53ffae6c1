"""A run between two steps: made anew, read from a checkpoint, written to one."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pfld_edge_runtime import Contract
from pfld_edge_train.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from pfld_edge_train.config import TrainConfig
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.models import LandmarkNet, ModelConfig, build_model
from pfld_edge_train.processes import Processes
from pfld_edge_train.trainee import Trainee, make_trainee

__all__ = ["RunState", "new_run", "resumed_run", "save_average", "save_run"]


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
        best_nme: Lowest validation NME so far.
    """

    config: TrainConfig
    contract: Contract
    trainee: Trainee
    processes: Processes
    next_epoch: int = 0
    epoch_step: int = 0
    epoch_loss: float = 0.0
    best_nme: float = float("inf")


def new_run(config: TrainConfig, init: Path | None = None, processes: Processes | None = None) -> RunState:
    """Start a run.

    Args:
        config: The run.
        init: Checkpoint of the same network to start from, its averaged weights where it has any; random weights
            where None.
        processes: Where it runs; one process on the CPU where None.

    Raises:
        CheckpointError: The checkpoint can't be read.
        TrainConfigError: It holds another network.
    """
    processes = processes or Processes(torch.device("cpu"))
    torch.manual_seed(config.seed)
    contract = Contract(model=config.model, input_size=config.input_size, trained_on=config.trained_on)
    model = build_model(_model_config(config, contract))
    if init is not None:
        model = _initial(init, _model_config(config, contract))
    return RunState(config, contract, make_trainee(model, config, processes), processes)


def resumed_run(config: TrainConfig, path: Path, processes: Processes | None = None) -> RunState:
    """Go on from a checkpoint of the same configuration, in the middle of an epoch too.

    Raises:
        CheckpointError: The file is damaged.
        TrainConfigError: It belongs to another configuration, or holds no optimizer.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.config != config.to_dict() or checkpoint.optimizer is None or checkpoint.ema_weights is None:
        raise TrainConfigError(
            f"{path}: not a checkpoint of this configuration; train into another folder, or drop --resume"
        )
    state = new_run(config, processes=processes)
    trainee = state.trainee
    trainee.model.load_state_dict(dict(checkpoint.weights))
    trainee.average.load_state_dict(dict(checkpoint.ema_weights))
    if trainee.auxiliary is not None and checkpoint.auxiliary is not None:
        trainee.auxiliary.load_state_dict(dict(checkpoint.auxiliary))
    trainee.optimizer.load_state_dict(checkpoint.optimizer)
    trainee.step = checkpoint.step
    state.next_epoch, state.best_nme = checkpoint.epoch + 1, checkpoint.best_nme
    state.epoch_step, state.epoch_loss = checkpoint.epoch_step, checkpoint.epoch_loss
    return state


def save_run(state: RunState, path: Path, contract: Contract | None = None) -> None:
    """Write all that is needed to go on; see `save_checkpoint`."""
    trainee = state.trainee
    checkpoint = Checkpoint(
        weights=trainee.model.state_dict(),
        ema_weights=trainee.average.state_dict(),
        auxiliary=None if trainee.auxiliary is None else trainee.auxiliary.state_dict(),
        optimizer=trainee.optimizer.state_dict(),
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


def _initial(path: Path, expected: ModelConfig) -> LandmarkNet:
    model, checkpoint = load_model(path)
    if checkpoint.model != expected or not isinstance(model, LandmarkNet):
        raise TrainConfigError(f"{path}: holds {checkpoint.model}, the configuration asks for {expected}")
    return model


def _model_config(config: TrainConfig, contract: Contract) -> ModelConfig:
    return ModelConfig(
        kind=config.model,
        width_factor=config.width_factor,
        input_size=config.input_size,
        num_landmarks=contract.landmarks.num_landmarks,
        conv_branches=config.conv_branches,
    )
