"""Initial weights from a checkpoint, also of another landmark scheme."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pfld_edge_runtime import FIVE_POINTS, IBUG_68, WFLW_98, Contract, LandmarkScheme, five_points, landmarks_68
from pfld_edge_train.checkpoint import Checkpoint, load_model
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.learner import LAST_LAYER
from pfld_edge_train.models import ModelConfig

_MAPPINGS = {IBUG_68: landmarks_68, FIVE_POINTS: five_points}
"""The runtime's maps from WFLW's 98 points; each new point is a weighted mean of old ones."""
_UNNAMED = re.compile(r"point_\d+")


class PointMap(NamedTuple):
    """New points as weighted means of old ones, and the reason in words for the user.

    Rows of the matrix ``(new points, old points)`` float64 sum to 1, or to 0 where a point is new.
    """

    matrix: NDArray[np.float64]
    reason: str

    @property
    def known(self) -> NDArray[np.bool_]:
        """``(new points,)``: true where a point follows from old ones."""
        return np.asarray(self.matrix.any(axis=1))


def map_points(old: LandmarkScheme | None, old_count: int, new: LandmarkScheme) -> PointMap:
    """Find what the points of one scheme are in another.

    Where `old` is None (a checkpoint without a scheme) as many points are taken as the same ones.
    """
    if old is None or old == new or (old.name, len(old.names)) == (new.name, len(new.names)):
        if old_count == new.num_landmarks:
            assumed = ", taken as the same points, for the file doesn't say" if old is None else ""
            return PointMap(np.eye(old_count), f"all {old_count} points{assumed}")
    elif old == WFLW_98 and new in _MAPPINGS:
        # The runtime's map is linear: its values for each single point.
        units = np.zeros((WFLW_98.num_landmarks, WFLW_98.num_landmarks, 2))
        units[..., 0] = np.eye(WFLW_98.num_landmarks)
        matrix = np.asarray(_MAPPINGS[new](units)[..., 0].T, np.float64)
        return PointMap(matrix, f"all {new.num_landmarks} points follow from {old.name}")
    matrix = np.zeros((new.num_landmarks, old_count))
    places = {name: i for i, name in enumerate(old.names if old else ()) if not _UNNAMED.fullmatch(name)}
    for row, name in zip(matrix, new.names, strict=True):
        if name in places:
            row[places[name]] = 1
    shared = int(matrix.sum())
    found = (
        f"{shared} of {new.num_landmarks} points are {old.name}'s of the same name" if old and shared else "no point"
    )
    return PointMap(matrix, found)


_REMEDIES = {
    "fused": "fused = {} in [finetune]",
    "pointwise_scale": "pointwise_scale = {} in [finetune]",
    "kind": "model = {!r}",
}
"""Configuration keys of a network's properties; the others have the property's name."""


def start_from(path: Path, model: nn.Module, config: ModelConfig, scheme: LandmarkScheme) -> str:
    """Fill a new network, in place, with a checkpoint's weights, averaged ones if there are any; say what was taken.

    All layers but the last must fit. The last one takes its rows from the matching points of the checkpoint's scheme,
    by `map_points`; other points keep their random weights. (A point between two others starts at their mean with a
    linear layer, only near it with heat maps.)

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
    """Combine rows: a point's outputs, x and y or its heat map, are consecutive."""
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
