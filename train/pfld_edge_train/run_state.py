"""The state of a run between two steps: new, also from another network's checkpoint, resumed, and saved."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfld_edge_runtime import (
    FIVE_POINTS,
    IBUG_68,
    WFLW_98,
    Contract,
    CropRule,
    LandmarkScheme,
    five_points,
    landmarks_68,
)
from pfld_edge_train.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from pfld_edge_train.config import TrainConfig, landmark_scheme
from pfld_edge_train.errors import TrainConfigError, TrainingDivergedError
from pfld_edge_train.learner import LAST_LAYER, Learner, freeze_layers, make_learner
from pfld_edge_train.models import ModelConfig, build_model
from pfld_edge_train.processes import Processes

REMEDY = "lower learning_rate or clip_norm; --resume goes on from the last checkpoint, which is whole"
"""Advice after a run diverged."""
_HARMLESS = frozenset({"device", "compile", "checkpoint_steps", "checkpoint_minutes", "tensorboard", "trained_on"})
"""Keys that don't change what a run learns."""
_MAPPINGS = {IBUG_68: landmarks_68, FIVE_POINTS: five_points}
"""The runtime's maps from WFLW's 98 points; each new point is a weighted mean of old ones."""
_UNNAMED = re.compile(r"point_\d+")
_REMEDIES = {
    "fused": "fused = {} in [finetune]",
    "pointwise_scale": "pointwise_scale = {} in [finetune]",
    "kind": "model = {!r}",
}
"""Configuration keys of a network's properties; the others have the property's name."""


@dataclass(slots=True)
class RunState:
    """A run between two steps.

    Of the current epoch, `next_epoch` from 0, `epoch_step` steps are done, with the sum of losses `epoch_loss`.
    `best_nme` is the lowest score on the validation faces so far, see `ValidationErrors`; `origin` says in a line what
    weights the run started from, `fine_tuned` whether they were a checkpoint's.
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

    CheckpointError where it can't be read, TrainConfigError where it holds another network.
    """
    processes = processes or Processes(torch.device("cpu"))
    if init is not None:
        config = _named_as_found(config, load_checkpoint(init).model)
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

    A file of another configuration, or without an optimizer, is a TrainConfigError, a damaged one a CheckpointError.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.config is None or checkpoint.optimizer is None or checkpoint.ema_weights is None:
        raise TrainConfigError(f"{path}: holds weights and no run; start from it with --init, in another folder")
    config = _named_as_found(config, checkpoint.model)
    differs = difference({**checkpoint.config, "model": checkpoint.model.kind}, config)
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


def _named_as_found(config: TrainConfig, found: ModelConfig) -> TrainConfig:
    """Take the network that had the configuration's name first (pfld-edge-s1) where a checkpoint holds that."""
    return replace(config, model=found.kind) if found.kind == f"{config.model}1" else config


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


def map_points(old: LandmarkScheme | None, old_count: int, new: LandmarkScheme) -> tuple[Tensor, str]:
    """Find what the points of one scheme are in another: weighted means, and the reason in words for the user.

    Rows of the matrix ``(new points, old points)`` sum to 1, or to 0 where a point is new.

    Where `old` is None (a checkpoint without a scheme) as many points are taken as the same ones.
    """
    if old is None or old == new or (old.name, len(old.names)) == (new.name, len(new.names)):
        if old_count == new.num_landmarks:
            assumed = ", taken as the same points, for the file doesn't say" if old is None else ""
            return torch.eye(old_count, dtype=torch.float64), f"all {old_count} points{assumed}"
    elif old == WFLW_98 and new in _MAPPINGS:
        # The runtime's map is linear: its values for each single point.
        units = np.zeros((WFLW_98.num_landmarks, WFLW_98.num_landmarks, 2))
        units[..., 0] = np.eye(WFLW_98.num_landmarks)
        matrix = torch.from_numpy(_MAPPINGS[new](units)[..., 0].T).double()
        return matrix, f"all {new.num_landmarks} points follow from {old.name}"
    matrix = torch.zeros(new.num_landmarks, old_count, dtype=torch.float64)
    places = {name: i for i, name in enumerate(old.names if old else ()) if not _UNNAMED.fullmatch(name)}
    for row, name in zip(matrix, new.names, strict=True):
        if name in places:
            row[places[name]] = 1
    shared = int(matrix.sum())
    own = f"{shared} of {new.num_landmarks} points are {old.name}'s of the same name" if old and shared else "no point"
    return matrix, own


def start_from(path: Path, model: nn.Module, config: ModelConfig, scheme: LandmarkScheme) -> str:
    """Fill a new network, in place, with a checkpoint's weights, averaged ones if there are any; say what was taken.

    All layers but the last must fit. The last one takes its rows from the matching points of the checkpoint's scheme,
    by `map_points`; other points keep their random weights. (A point between two others starts at their mean with a
    linear layer, only near it with heat maps.) A checkpoint of another network is a TrainConfigError.
    """
    source, checkpoint = load_model(path)
    _check_network(path, checkpoint.model, config)
    state = source.state_dict()
    matrix, reason = map_points(_scheme(checkpoint), checkpoint.model.num_landmarks, scheme)
    own = model.state_dict()
    for name, _ in model.named_parameters():
        if ".refinement." in name:  # its weights are of all points together
            state[name] = state[name] if torch.equal(matrix, torch.eye(*matrix.shape)) else own[name]
        elif name.startswith(f"{LAST_LAYER}."):
            state[name] = _mapped(state[name], own[name], matrix)
    model.load_state_dict(state)
    taken = "averaged weights" if checkpoint.ema_weights is not None else "weights"
    fresh = int((~matrix.any(dim=1)).sum())
    end = f"; {fresh} start fresh" if fresh else ""
    return f"starts from the {taken} of {path.name}; last layer: {reason}{end}"


def _mapped(old: Tensor, fresh: Tensor, matrix: Tensor) -> Tensor:
    """Combine rows: a point's outputs, x and y or its heat map, are consecutive."""
    outputs = len(old) // matrix.shape[1]
    by_point = old.double().view(matrix.shape[1], outputs, -1)
    mapped = torch.einsum("np,pdc->ndc", matrix, by_point).reshape(fresh.shape).to(fresh.dtype)
    known = matrix.any(dim=1).repeat_interleave(outputs).view(-1, *[1] * (fresh.ndim - 1))
    return torch.where(known, mapped, fresh)


def _scheme(checkpoint: Checkpoint) -> LandmarkScheme | None:
    if checkpoint.contract:
        return Contract.from_dict(checkpoint.contract).landmarks
    # As published: a file of 98 points is WFLW's.
    return WFLW_98 if checkpoint.model.num_landmarks == WFLW_98.num_landmarks else None


def _check_network(path: Path, found: ModelConfig, wanted: ModelConfig) -> None:
    found = replace(found, num_landmarks=wanted.num_landmarks)
    for item in fields(ModelConfig):
        have, asked = getattr(found, item.name), getattr(wanted, item.name)
        if have != asked:
            value = str(have).lower() if isinstance(have, bool) else have
            remedy = _REMEDIES.get(item.name, f"{item.name} = {{}}").format(value)
            raise TrainConfigError(
                f"{path}: its {item.name} is {have}, the configuration asks for {asked}: start from it with {remedy}"
            )
