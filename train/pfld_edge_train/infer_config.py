"""Tells a network's kind and size from the names and shapes of its weights."""

import math
from collections.abc import Mapping

from torch import Tensor

from pfld_edge_train.errors import CheckpointError
from pfld_edge_train.models import ModelConfig

__all__ = ["infer_config"]

_Shapes = Mapping[str, Tensor]


def infer_config(weights: _Shapes) -> ModelConfig:
    """Find the configuration that has these weights.

    Args:
        weights: A state dict without prefixes.

    Raises:
        CheckpointError: They are not those of a network of this project's family.
    """
    kind = _kind(weights)
    first = next(weights[name] for name in _first_convolutions(kind) if name in weights)
    base = 16 if kind == "pfld-edge-s" else 64
    return ModelConfig(
        kind=kind,
        width_factor=first.shape[0] / base,
        input_size=_input_size(weights, kind),
        num_landmarks=_num_landmarks(weights),
        conv_branches=_conv_branches(weights),
        fused=not any(name.endswith("running_mean") for name in weights),
    )


def _first_convolutions(kind: str) -> tuple[str, ...]:
    block = "blocks.0" if kind == "pfld-edge-s" else "conv1"
    return f"{block}.0.weight", f"{block}.rbr_conv.0.conv.weight", f"{block}.reparam_conv.weight"


def _kind(weights: _Shapes) -> str:
    """Each kind has a name that the others lack; Slim differs from GhostNet by a width alone."""
    if "fc.weight" in weights and any(name.startswith("blocks.0.") for name in weights) and "fc.bias" in weights:
        return "pfld-edge-s"
    if any(name in weights for name in _first_convolutions("pfld-ghostone")[1:]):
        return "pfld-ghostone"
    if "conv3_1.inv_res.0.0.weight" in weights:
        return "pfld"
    ghost = weights.get("conv3_1.ghost_conv.0.primary_conv.0.weight")
    if ghost is not None:
        stem = weights["conv1.0.weight"].shape[0]
        # Hidden half-width over the stem's width: 64 / 64 in GhostNet, 48 / 64 in Slim.
        return "pfld-ghostnet" if ghost.shape[0] / stem > 0.875 else "pfld-ghostnet-slim"
    names = ", ".join(list(weights)[:3])
    raise CheckpointError(
        "weights of an unknown network: expected those of pfld, pfld-ghostnet, pfld-ghostnet-slim, pfld-ghostone or "
        f"pfld-edge-s, found names like {names or 'none at all'}"
    )


def _input_size(weights: _Shapes, kind: str) -> int:
    if kind == "pfld-edge-s":
        return round(math.sqrt(_shape(weights, "fc.weight")[1] / 16)) * 16
    return _shape(weights, "conv8.0.weight")[-1] * 16


def _num_landmarks(weights: _Shapes) -> int:
    outputs = _shape(weights, "fc.weight")[0]
    if outputs % 2:
        raise CheckpointError(f"the last layer has {outputs} outputs, expected an x and a y for each landmark")
    return outputs // 2


def _conv_branches(weights: _Shapes) -> int:
    numbers = [int(name.split(".rbr_conv.")[1].split(".")[0]) for name in weights if ".rbr_conv." in name]
    return max(numbers, default=0) + 1


def _shape(weights: _Shapes, name: str) -> tuple[int, ...]:
    if name not in weights:
        raise CheckpointError(f"the weights lack {name}, which every network of this kind has")
    return tuple(weights[name].shape)
