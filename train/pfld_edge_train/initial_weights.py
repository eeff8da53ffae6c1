"""Starts a network from a checkpoint, of other landmarks too."""

from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import nn

from pfld_edge_runtime import WFLW_98, Contract, LandmarkScheme
from pfld_edge_train.checkpoint import Checkpoint, load_model
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.frozen_layers import LAST_LAYER
from pfld_edge_train.landmark_rows import PointMap, map_points
from pfld_edge_train.models import ModelConfig

__all__ = ["start_from"]

_REMEDIES = {
    "fused": "fused = {} in [finetune]",
    "pointwise_scale": "pointwise_scale = {} in [finetune]",
    "kind": "model = {!r}",
}
"""Where a configuration says each part of a network; the others by their own name."""


def start_from(path: Path, model: nn.Module, config: ModelConfig, scheme: LandmarkScheme) -> str:
    """Fill a network with a checkpoint's weights, the averaged ones where there are any.

    All layers but the last must fit. The last one takes its rows from the matching points of the checkpoint's scheme,
    by `map_points`; points without a match keep the random start that they have. (A point between two others starts at
    their mean from a linear layer, only near it from heat maps.)

    Args:
        path: A checkpoint of ours, or another project's, see `load_checkpoint`.
        model: Just built; changed in place.
        config: Of the network.
        scheme: The points that it is to find.

    Returns:
        What was taken from where, in one line.

    Raises:
        CheckpointError: The checkpoint can't be read.
        ModelContractError: Its contract is damaged.
        TrainConfigError: It holds another network.
    """
    source, checkpoint = load_model(path)
    _check_network(path, checkpoint.model, config)
    state = source.state_dict()
    rows = map_points(_scheme(checkpoint), checkpoint.model.num_landmarks, scheme)
    own = model.state_dict()
    for name, _ in model.named_parameters():
        if name.startswith(f"{LAST_LAYER}."):
            state[name] = _mapped(state[name], own[name], rows)
    model.load_state_dict(state)
    taken = "averaged weights" if checkpoint.ema_weights is not None else "weights"
    fresh = int((~rows.known).sum())
    end = f"; {fresh} start fresh" if fresh else ""
    return f"starts from the {taken} of {path.name}; last layer: {rows.reason}{end}"


def _mapped(old: torch.Tensor, fresh: torch.Tensor, rows: PointMap) -> torch.Tensor:
    """Combine rows: a point's outputs follow each other, x and y, or its heat map."""
    matrix = torch.from_numpy(rows.matrix)
    outputs = len(old) // len(matrix.T)
    by_point = old.double().view(len(matrix.T), outputs, -1)
    mapped = torch.einsum("np,pdc->ndc", matrix, by_point).reshape(fresh.shape).to(fresh.dtype)
    known = torch.from_numpy(rows.known).repeat_interleave(outputs).view(-1, *[1] * (fresh.ndim - 1))
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
