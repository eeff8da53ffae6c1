"""Checkpoints: one typed format of our own, and the public PFLD projects' formats to read.

The kind and size of a network in another project's file follow from the names and shapes of its weights.
"""

import math
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfld_edge_calib.files import replacing
from pfld_edge_train.errors import CheckpointError, ModelConfigError
from pfld_edge_train.models import MODEL_KINDS, LandmarkNet, ModelConfig, build_model
from pfld_edge_train.models.edge import SHAPES

_FAMILY = "pfld-edge-checkpoint-"
FORMAT = f"{_FAMILY}1"

_FOREIGN_KEYS = ("state_dict", "pfld_backbone", "plfd_backbone", "model_state_dict", "model")
"""Where other projects keep the weights inside a saved dict; the misspelling is a public project's own."""

_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.")
"""Prefixes of names that DistributedDataParallel, torch.compile, Lightning and training scripts add."""

_FIRST_CHANNELS = 64
"""Of the first block of the published networks; see `SHAPES` for our own."""

_HEAT = "fc.heat.weight"
"""Of the layer that gives heat maps."""
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
    record |= {"format": FORMAT, "model": checkpoint.model.to_dict()}
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
    weights = _state_dict(_read(path))
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
        # pfld-edge-s1 and pfld-edge-m1 were called pfld-edge-s and pfld-edge-m.
        config = replace(config, kind=_kind(values["weights"]) or config.kind)
    if config.kind not in MODEL_KINDS:
        raise CheckpointError(f"it holds an unknown network {config.kind!r}; known: {', '.join(MODEL_KINDS)}")
    return Checkpoint(**{**values, "model": config})


def _foreign(record: dict[str, Any]) -> Checkpoint:
    weights = _state_dict(record)
    weights = next((inner for inner in _unwrapped(weights) if _kind(inner)), weights)
    return Checkpoint(weights=weights, model=infer_config(weights))


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


def infer_config(weights: Mapping[str, Tensor]) -> ModelConfig:
    """Find the configuration of a state dict without prefixes.

    Raises:
        CheckpointError: It is not that of a network of this project's family.
    """
    kind = _kind(weights)
    if kind is None:
        names = ", ".join(list(weights)[:3])
        raise CheckpointError(
            "weights of an unknown network: expected those of pfld, pfld-ghostnet, pfld-ghostnet-slim, pfld-ghostone, "
            f"pfld-edge-s or pfld-edge-m, found names like {names or 'none at all'}"
        )
    widths = width_candidates(kind, _channels(weights, "blocks.0" if kind in SHAPES else "conv1"))
    branches = (re.search(r"\.rbr_conv\.(\d{1,3})\.", name) for name in weights)
    config = ModelConfig(
        kind=kind,
        width_factor=widths[-1],
        input_size=_input_size(weights, kind),
        num_landmarks=_num_landmarks(weights, kind),
        conv_branches=max((int(match[1]) for match in branches if match), default=0) + 1,
        fused=not any(name.endswith("running_mean") for name in weights),
        pointwise_scale=any(".primary_conv.rbr_scale." in name for name in weights),
    )
    candidates = [replace(config, width_factor=width) for width in widths]
    fitting = next((candidate for candidate in candidates if not _misfits(candidate, weights)), None)
    # A damaged file fits none: the nearest, so that what is damaged can be named.
    return fitting or min(candidates, key=lambda candidate: _misfits(candidate, weights))


def width_candidates(kind: str, stem_channels: int) -> list[float]:
    """Width factors that give a network's first layer this many channels, round ones first.

    Channels are rounded down (to even numbers in GhostOne), so several widths are possible: 51 of 64 channels are a
    width of 0.8, or 0.81. The last candidate is the plain ratio.
    """
    base = SHAPES[kind].stem if kind in SHAPES else _FIRST_CHANNELS
    lowest, above = stem_channels / base, (stem_channels + (2 if kind == "pfld-ghostone" else 1)) / base
    round_ones = (step / steps for steps in (10, 8, 20, 100) for step in range(steps // 10, 8 * steps + 1))
    return list(dict.fromkeys([*(w for w in round_ones if lowest - 1e-6 <= w < above - 1e-6 and w >= 0.1), lowest]))


def _misfits(config: ModelConfig, weights: Mapping[str, Tensor]) -> int:
    """Count the weights that have another shape than this configuration gives them."""
    with torch.device("meta"):
        expected = build_model(config).state_dict()
    return sum(value.shape != expected[name].shape for name, value in weights.items() if name in expected)


def _convolutions(block: str) -> tuple[str, ...]:
    """Names that the weight of a block's convolution may have."""
    return f"{block}.0.weight", f"{block}.rbr_conv.0.conv.weight", f"{block}.reparam_conv.weight"


def _channels(weights: Mapping[str, Tensor], block: str) -> int:
    """Of a block's output."""
    names = _convolutions(block)
    return _shape(weights, next((name for name in names if name in weights), names[0]), axes=4)[0]


def _kind(weights: Mapping[str, Tensor]) -> str | None:
    """Each kind has a name that the others lack; Slim differs from GhostNet by a width only. None for other names."""
    if any(name.startswith("blocks.0.") for name in weights):
        if _HEAT in weights:
            if not any(name.startswith("blocks.6.") for name in weights):
                return "pfld-edge-s"
            narrow = _channels(weights, "blocks.0") < _channels(weights, "blocks.1") / 2
            return "pfld-edge-m" if narrow else "pfld-edge-m1"
        if "fc.weight" in weights and "fc.bias" in weights:
            return "pfld-edge-s1"
    if any(name in weights for name in _convolutions("conv1")[1:]):
        return "pfld-ghostone"
    if "conv3_1.inv_res.0.0.weight" in weights:
        return "pfld"
    if "conv3_1.ghost_conv.0.primary_conv.0.weight" in weights:
        # Hidden half-width over the stem's width: 64 / 64 in GhostNet, 48 / 64 in Slim.
        half, stem, _, _ = _shape(weights, "conv3_1.ghost_conv.0.primary_conv.0.weight", axes=4)
        return "pfld-ghostnet" if half / max(stem, 1) > 0.875 else "pfld-ghostnet-slim"
    return None


def _input_size(weights: Mapping[str, Tensor], kind: str) -> int:
    if _HEAT in weights:
        return round(math.sqrt(_shape(weights, "fc.grid", axes=2)[0])) * 8 // SHAPES[kind].fine
    if kind == "pfld-edge-s1":
        return round(math.sqrt(_shape(weights, "fc.weight", axes=2)[1] / 16)) * 16
    return _shape(weights, "conv8.0.weight", axes=4)[-1] * 16


def _num_landmarks(weights: Mapping[str, Tensor], kind: str) -> int:
    if _HEAT in weights:
        return _shape(weights, _HEAT, axes=4)[0] // SHAPES[kind].fine ** 2
    outputs = _shape(weights, "fc.weight", axes=2)[0]
    if outputs % 2:
        raise CheckpointError(f"the last layer has {outputs} outputs, expected an x and a y for each landmark")
    return outputs // 2


def _shape(weights: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    if name not in weights:
        raise CheckpointError(f"the weights lack {name}, which every network of this kind has")
    shape = tuple(weights[name].shape)
    if len(shape) != axes:
        raise CheckpointError(f"{name} should have {axes} axes, found shape {shape}")
    return shape
