"""Checkpoints: one typed format of our own, and the public PFLD projects' formats to read (`models.published`)."""

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfld_edge_calib.files import replacing
from pfld_edge_train.errors import CheckpointError, ModelConfigError
from pfld_edge_train.models import MODEL_KINDS, LandmarkNet, ModelConfig, build_model
from pfld_edge_train.models.edge import SHAPES, edge_kind

_FAMILY = "pfld-edge-checkpoint-"
FORMAT = f"{_FAMILY}1"

_FOREIGN_KEYS = ("state_dict", "pfld_backbone", "plfd_backbone", "pfld", "model_state_dict", "model", "net")
"""Where other projects keep the weights inside a saved dict; the misspelling is a public project's own."""

_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.")
"""Prefixes of names that DistributedDataParallel, torch.compile, Lightning and training scripts add."""

_REQUIRED = ("weights", "model", "ema_weights", "optimizer", "step", "epoch", "best_nme", "config", "contract")
"""Fields that every version has written."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a training run needs to resume, and all that a conversion needs to start.

    Attributes:
        weights: State dict of the network `model`.
        ema_weights: Exponential moving average of the weights, which is shipped.
        optimizer: Its state dict; None in files that can't be resumed.
        step: Optimizer steps done; `epoch_step` of them in the epoch after `epoch`, of losses that sum to `epoch_loss`.
        epoch: Last finished epoch, from 0; -1 where unknown.
        best_nme: Lowest validation NME so far; infinite where unknown.
        auxiliary: State dict of PFLD's auxiliary network, for training only.
        scaler: State of float16's loss scaling; None for other precisions.
        fine_tuned: Whether the run started from another checkpoint's weights.
        config: The training configuration in plain types, as is `contract`; both None in other projects' files.
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


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a killed run leaves the old file or the new one, never half of one."""
    record = {item.name: getattr(checkpoint, item.name) for item in fields(checkpoint)}
    record |= {"format": FORMAT, "model": asdict(checkpoint.model)}
    with replacing(path) as file:
        torch.save(record, file)


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


def load_model(path: Path) -> tuple[LandmarkNet, Checkpoint]:
    """Rebuild a checkpoint's network in evaluation mode, with the averaged weights where there are any.

    Raises:
        CheckpointError: As `load_checkpoint`, or the weights don't fit the network that the file names.
    """
    checkpoint = load_checkpoint(path)
    averaged, model = checkpoint.ema_weights, build_model(checkpoint.model)
    _fill(model, averaged if averaged is not None else checkpoint.weights, path)
    return model.eval(), checkpoint


def fill_network(model: nn.Module, path: Path) -> None:
    """Load a state dict, or a dict that holds one, into any network; prefixes are removed where the names then fit.

    Raises:
        CheckpointError: The file can't be read, or a name or shape doesn't fit.
    """
    record = _read(path)
    try:
        weights = _state_dict(record)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    expected = set(model.state_dict())
    _fill(model, max(_unwrapped(weights), key=lambda inner: len(expected.intersection(inner))), path)


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
        if "TorchScript" in str(error):
            raise CheckpointError(f"{path}: a TorchScript network; {_mend(path, 'torch.jit.load', '')}") from error
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
        mend = _mend(path, "torch.load", ", weights_only=False")
        return f"{path}: refused, it holds {found} besides weights, which could run code; {mend}"
    return f"{path}: not a PyTorch checkpoint, and no ONNX file by its name (.onnx)"


def _mend(path: Path, load: str, more: str) -> str:
    saved = path.with_suffix(".state.pth").name
    return (
        f'where you trust it, save its weights alone: model = {load}("{path.name}"{more}); '
        f'torch.save(model.state_dict(), "{saved}")'
    )


def _own(record: dict[str, Any]) -> Checkpoint:
    if record["format"] != FORMAT:
        raise CheckpointError(f"format {record['format']} is not known to this version, which reads {FORMAT}")
    missing = [name for name in _REQUIRED if name not in record]
    if missing:
        raise CheckpointError(f"a damaged pfld-edge checkpoint: it lacks {missing[0]}")
    # Older files lack the other fields, whose defaults apply.
    present = [item for item in fields(Checkpoint) if item.name in record]
    values = {item.name: record[item.name] for item in present}
    for item in present:
        found, default = values[item.name], item.default
        plain = (float, int) if isinstance(default, float) else (type(default),)
        types = {MISSING: (dict,), None: (dict, type(None))}.get(default, plain)
        if not isinstance(found, types):
            raise CheckpointError(f"a damaged pfld-edge checkpoint: {item.name} is of type {type(found).__name__}")
    for weights in (values["weights"], values.get("ema_weights") or {}):
        if not all(isinstance(value, Tensor) for value in weights.values()):
            raise CheckpointError("a damaged pfld-edge checkpoint: its weights are not all tensors")
    try:
        config = ModelConfig(**values["model"])
    except TypeError as error:
        raise CheckpointError("a damaged pfld-edge checkpoint: its description of the network is unreadable") from error
    if config.kind in SHAPES:
        # Older networks of these names have numbers now.
        config = replace(config, kind=edge_kind(values["weights"]) or config.kind)
    if config.kind not in MODEL_KINDS:
        raise CheckpointError(f"it holds an unknown network {config.kind!r}; known: {', '.join(MODEL_KINDS)}")
    return Checkpoint(**{**values, "model": config})


def _foreign(record: dict[str, Any]) -> Checkpoint:
    # Here, for our own checkpoints need none of it.
    from pfld_edge_train.models.published import network_kind, read_published, unknown_network

    spellings = list(_unwrapped(_state_dict(record)))
    kind, weights = next(((kind, inner) for inner in spellings if (kind := network_kind(inner))), (None, {}))
    if kind is None:
        raise CheckpointError(unknown_network(spellings))
    weights, config = read_published(weights, kind)
    return Checkpoint(weights=weights, model=config)


def _state_dict(record: dict[str, Any]) -> dict[str, Tensor]:
    while key := next((key for key in _FOREIGN_KEYS if isinstance(record.get(key), dict)), None):
        record = record[key]
    strangers = [name for name, value in record.items() if not isinstance(value, Tensor)]
    if strangers or not record:
        found = f"other things, such as {strangers[0]!r}" if strangers else "nothing"
        raise CheckpointError(f"expected a state dict of tensors, found {found}")
    return {str(name): value for name, value in record.items()}


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
