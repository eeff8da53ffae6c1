"""Checkpoints: one typed format of our own, and the public PFLD projects' formats to read."""

import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfld_edge_train.errors import CheckpointError, ModelConfigError
from pfld_edge_train.infer_config import infer_config, names_a_network
from pfld_edge_train.models import MODEL_KINDS, LandmarkNet, ModelConfig, build_model

_FAMILY = "pfld-edge-checkpoint-"
FORMAT = f"{_FAMILY}1"

_FOREIGN_KEYS = ("state_dict", "pfld_backbone", "plfd_backbone", "model_state_dict", "model")
"""Where other projects keep the weights inside a saved dict; the misspelling is a public project's own."""

_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.")
"""Prefixes of names that DistributedDataParallel, torch.compile, Lightning and training scripts add."""

_REQUIRED = ("weights", "model", "ema_weights", "optimizer", "step", "epoch", "best_nme", "config", "contract")
"""Fields that every version has written."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a training run needs to resume, and all that a conversion needs to start.

    Attributes:
        weights: The network's state dict.
        model: Which network they belong to.
        ema_weights: Exponential moving average of the weights, which is shipped; None where there is none.
        optimizer: The optimizer's state dict; None in files that can't be resumed.
        step: Optimizer steps done.
        epoch: Last finished epoch, from 0; -1 where unknown.
        best_nme: Lowest validation NME so far; infinite where unknown.
        auxiliary: State dict of PFLD's auxiliary network, for training only; None where there is none.
        scaler: State of float16's loss scaling; None for other precisions.
        epoch_step: Steps done of the epoch after `epoch`; 0 between two epochs.
        epoch_loss: Sum of those steps' losses.
        fine_tuned: Whether the run started from another checkpoint's weights.
        config: The training configuration in plain types.
        contract: The model's contract in plain types; None in other projects' files.
    """

    weights: Mapping[str, Tensor]
    model: ModelConfig
    ema_weights: Mapping[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    step: int = 0
    epoch: int = -1
    best_nme: float = float("inf")
    auxiliary: Mapping[str, Tensor] | None = None
    scaler: dict[str, Any] | None = None
    epoch_step: int = 0
    epoch_loss: float = 0.0
    fine_tuned: bool = False
    config: dict[str, Any] | None = None
    contract: dict[str, Any] | None = None


_PLAIN_TYPES: Mapping[str, tuple[type, ...]] = {
    item.name: (dict,)
    if item.default is MISSING
    else (dict, type(None))
    if item.default is None
    else (float, int)
    if isinstance(item.default, float)
    else (type(item.default),)
    for item in fields(Checkpoint)
}
"""Types of the fields as they are saved."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a killed run leaves the old file or the new one, never half of one."""
    record = {item.name: getattr(checkpoint, item.name) for item in fields(checkpoint)}
    record |= {"format": FORMAT, "model": checkpoint.model.to_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(record, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of ours, a bare state dict, or a dict that holds one.

    Prefixes such as ``module.`` or ``_orig_mod.`` are removed where the names then fit. The file is read with
    ``weights_only=True``: no code in it is executed.

    Raises:
        CheckpointError: The file is missing, truncated, not a checkpoint, of an unknown network, or holds more than
            tensors and plain types.
    """
    record = _read(path)
    try:
        return _own(record) if str(record.get("format")).startswith(_FAMILY) else _foreign(record)
    except (CheckpointError, ModelConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_model(path: Path, *, use_ema: bool = True) -> tuple[LandmarkNet, Checkpoint]:
    """Rebuild a checkpoint's network in evaluation mode, with the averaged weights where there are any and `use_ema`.

    Raises:
        CheckpointError: As `load_checkpoint`, or the weights don't fit the network that the file names.
    """
    checkpoint = load_checkpoint(path)
    averaged = checkpoint.ema_weights if use_ema else None
    model = build_model(checkpoint.model)
    _fill(model, averaged if averaged is not None else checkpoint.weights, path)
    return model.eval(), checkpoint


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with warnings.catch_warnings():
            # torch warns of unusual pickle protocols before it refuses them; the refusal says enough.
            warnings.simplefilter("ignore", UserWarning)
            record = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    except Exception as error:
        # torch's unpickler raises many kinds of errors for damaged files, whose texts don't help a user.
        raise CheckpointError(f"{path}: not a whole PyTorch checkpoint; copy it again if it was one") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: expected a dict of weights, found {type(record).__name__}")
    return record


def _refusal(path: Path, reason: str) -> str:
    """Distinguish a file that holds code from one that is no checkpoint."""
    with path.open("rb") as file:
        head = file.read(2)
    stranger = re.search(r"GLOBAL ([\w.]+)", reason)
    if stranger or head == b"PK" or head[:1] == b"\x80":
        found = stranger.group(1) if stranger else "Python objects"
        return f"{path}: refused, it holds {found} besides weights, which could run code; save only model.state_dict()"
    return f"{path}: not a PyTorch checkpoint, and no ONNX file by its name (.onnx)"


def _own(record: dict[str, Any]) -> Checkpoint:
    if record["format"] != FORMAT:
        raise CheckpointError(f"format {record['format']} is not known to this version, which reads {FORMAT}")
    missing = [name for name in _REQUIRED if name not in record]
    if missing:
        raise CheckpointError(f"a damaged pfld-edge checkpoint: it lacks {missing[0]}")
    # Older files lack the other fields, whose defaults apply.
    values = {item.name: record[item.name] for item in fields(Checkpoint) if item.name in record}
    for name, value in values.items():
        if not isinstance(value, _PLAIN_TYPES[name]):
            found = type(value).__name__
            raise CheckpointError(f"a damaged pfld-edge checkpoint: {name} is of type {found}")
    for weights in (values["weights"], values.get("ema_weights") or {}):
        if not all(isinstance(value, Tensor) for value in weights.values()):
            raise CheckpointError("a damaged pfld-edge checkpoint: its weights are not all tensors")
    try:
        config = ModelConfig(**values["model"])
    except TypeError as error:
        raise CheckpointError("a damaged pfld-edge checkpoint: its description of the network is unreadable") from error
    if config.kind not in MODEL_KINDS:
        raise CheckpointError(f"it holds an unknown network {config.kind!r}; known: {', '.join(MODEL_KINDS)}")
    return Checkpoint(**{**values, "model": config})


def _foreign(record: dict[str, Any]) -> Checkpoint:
    while key := next((key for key in _FOREIGN_KEYS if isinstance(record.get(key), dict)), None):
        record = record[key]
    strangers = [name for name, value in record.items() if not isinstance(value, Tensor)]
    if strangers or not record:
        found = f"other things, such as {strangers[0]!r}" if strangers else "nothing"
        raise CheckpointError(f"expected a state dict of tensors, found {found}")
    weights = {str(name): value for name, value in record.items()}
    weights = next((inner for inner in _unwrapped(weights) if names_a_network(inner)), weights)
    return Checkpoint(weights=weights, model=infer_config(weights))


def _unwrapped(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the weights as they are, then without one prefix after the other, and without what lacks the prefix."""
    yield weights
    for prefix in _WRAPPERS:
        inner = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if inner:
            yield from _unwrapped(inner)


def _fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load the weights; raise with the first name or shape that doesn't fit."""
    expected = model.state_dict()
    # Checkpoints of old PyTorch versions lack the counters, which inference ignores.
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    surplus = [name for name in weights if name not in expected]
    for names, verdict in ((missing, "lacks"), (surplus, "has unknown")):
        if names:
            raise CheckpointError(f"{path}: the checkpoint {verdict} {names[0]} ({len(names)} such names)")
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(expected[name].shape)}, found {tuple(value.shape)}"
            raise CheckpointError(f"{path}: {name} should have shape {shapes}")
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values; take a checkpoint from before that")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise CheckpointError(f"{path}: {name} holds a negative variance, the file is damaged; take another copy")
    model.load_state_dict(dict(weights), strict=False)
