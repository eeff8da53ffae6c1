"""The state of a run between two steps: new, read from a checkpoint, written to one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pfld_edge_runtime import Contract, CropRule
from pfld_edge_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pfld_edge_train.config import TrainConfig, landmark_scheme
from pfld_edge_train.errors import TrainConfigError, TrainingDivergedError
from pfld_edge_train.initial_weights import start_from
from pfld_edge_train.learner import Learner, freeze_layers, make_learner
from pfld_edge_train.models import ModelConfig, build_model
from pfld_edge_train.processes import Processes

REMEDY = "lower learning_rate or clip_norm; --resume goes on from the last checkpoint, which is whole"
"""Advice after a run diverged."""
_HARMLESS = frozenset({"device", "compile", "checkpoint_steps", "checkpoint_minutes", "tensorboard", "trained_on"})
"""Keys that don't change what a run learns."""


@dataclass(slots=True)
class RunState:
    """A run between two steps.

    Attributes:
        config: Its configuration.
        contract: Of the network.
        learner: The network and its optimizer.
        processes: Where it runs.
        next_epoch: The current epoch, from 0; `epoch_step` steps of it are done.
        epoch_loss: Sum of their losses.
        best_nme: Lowest score on the validation faces so far, see `ValidationErrors`.
        origin: What weights it started from, in a line; `fine_tuned` where they are a checkpoint's.
    """

    config: TrainConfig
    contract: Contract
    learner: Learner
    processes: Processes
    next_epoch: int = 0
    epoch_step: int = 0
    epoch_loss: float = 0.0
    best_nme: float = float("inf")
    origin: str = ""
    fine_tuned: bool = False

    def freezes_statistics(self, faces: int) -> bool:
        """Whether BatchNorm keeps the statistics that it started with, because training faces are few."""
        return self.fine_tuned and faces < self.config.finetune.statistics_faces


def new_run(config: TrainConfig, init: Path | None = None, processes: Processes | None = None) -> RunState:
    """Start a run from random weights, or from the checkpoint `init` of the same network, also for other landmarks.

    Raises:
        CheckpointError: The checkpoint can't be read.
        TrainConfigError: It holds another network.
    """
    processes = processes or Processes(torch.device("cpu"))
    # For the random weights; all later random numbers come from generators of their own.
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
    origin = f"starts from random weights, seed {config.seed}"
    if init is not None:
        origin = start_from(init, model, network, contract.landmarks)
    freeze_layers(model, config.finetune.freeze)
    return RunState(
        config, contract, make_learner(model, config, processes), processes, origin=origin, fine_tuned=init is not None
    )


def resumed_run(config: TrainConfig, path: Path, processes: Processes | None = None) -> RunState:
    """Resume from a checkpoint of the same configuration, also in the middle of an epoch.

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
    learner = state.learner
    learner.model.load_state_dict(dict(checkpoint.weights))
    learner.average.load_state_dict(dict(checkpoint.ema_weights))
    if learner.auxiliary is not None and checkpoint.auxiliary is not None:
        learner.auxiliary.load_state_dict(dict(checkpoint.auxiliary))
    learner.optimizer.load_state_dict(checkpoint.optimizer)
    if checkpoint.scaler:
        learner.scaler.load_state_dict(checkpoint.scaler)
    learner.step = checkpoint.step
    state.next_epoch, state.best_nme = checkpoint.epoch + 1, checkpoint.best_nme
    state.epoch_step, state.epoch_loss = checkpoint.epoch_step, checkpoint.epoch_loss
    state.origin, state.fine_tuned = f"goes on from {path}", checkpoint.fine_tuned
    return state


def save_run(state: RunState, path: Path, contract: Contract | None = None) -> None:
    """Write all that is needed to resume; see `save_checkpoint`.

    Raises:
        TrainingDivergedError: A weight is not finite; the existing file stays.
    """
    learner = state.learner
    for name, value in (*learner.model.state_dict().items(), *learner.average.state_dict().items()):
        if not bool(torch.isfinite(value).all()):
            raise TrainingDivergedError(f"{name} is not finite after step {learner.step}, nothing was saved: {REMEDY}")
    checkpoint = Checkpoint(
        weights=learner.model.state_dict(),
        ema_weights=learner.average.state_dict(),
        auxiliary=None if learner.auxiliary is None else learner.auxiliary.state_dict(),
        optimizer=learner.optimizer.state_dict(),
        scaler=learner.scaler.state_dict() or None,
        step=learner.step,
        epoch=state.next_epoch - 1,
        epoch_step=state.epoch_step,
        epoch_loss=state.epoch_loss,
        best_nme=state.best_nme,
        fine_tuned=state.fine_tuned,
        model=_model_config(state.config, state.contract),
        config=state.config.to_dict(),
        contract=(contract or state.contract).to_dict(),
    )
    save_checkpoint(path, checkpoint)


def save_average(state: RunState, path: Path, contract: Contract) -> None:
    """Write the averaged weights alone, which are converted and shipped."""
    checkpoint = Checkpoint(
        weights=state.learner.average.state_dict(),
        model=_model_config(state.config, state.contract),
        step=state.learner.step,
        epoch=state.next_epoch - 1,
        contract=contract.to_dict(),
    )
    save_checkpoint(path, checkpoint)


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


def difference(saved: dict[str, Any], config: TrainConfig) -> str | None:
    """The first difference between a saved configuration, also of an older version, and a run's; None where equal.

    Keys that don't change the weights are ignored.
    """
    try:
        before = TrainConfig.from_dict(saved).to_dict()
    except TrainConfigError as error:
        return f"this version can't read its {error}"
    return next(_differences(before, config.to_dict()), None)


def _differences(before: dict[str, Any], now: dict[str, Any], table: str = "") -> Iterator[str]:
    for name, value in now.items():
        old = before[name]
        if name in _HARMLESS and not table:
            continue
        if isinstance(value, dict):
            yield from _differences(old, value, f"{name}.")
        elif name != "data":
            if old != value:
                yield f"{table}{name} was {old!r} and is {value!r} now"
        elif len(old) != len(value):
            yield f"it had {len(old)} sources of faces and has {len(value)} now"
        else:
            for number, sources in enumerate(zip(old, value, strict=True), start=1):
                yield from _differences(*sources, f"data {number}, ")
