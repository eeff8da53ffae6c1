"""Infers a network's kind and size from the names and shapes of its weights."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pfld_edge_train.errors import CheckpointError
from pfld_edge_train.models import ModelConfig, build_model

_Shapes = Mapping[str, Tensor]

_STEMS = {"pfld-edge-s": 16, "pfld-edge-m": 32}
"""Channels of our own networks' first block; the others have 64."""

_HEAT = "fc.heat.weight"
"""Of the layer that gives heat maps."""


def infer_config(weights: _Shapes) -> ModelConfig:
    """Find the configuration of a state dict without prefixes.

    Raises:
        CheckpointError: It is not that of a network of this project's family.
    """
    kind = _kind(weights)
    names = _first_convolutions(kind)
    stem = _shape(weights, next((name for name in names if name in weights), names[0]), axes=4)
    widths = width_candidates(kind, stem[0])
    config = ModelConfig(
        kind=kind,
        width_factor=widths[-1],
        input_size=_input_size(weights, kind),
        num_landmarks=_num_landmarks(weights),
        conv_branches=_conv_branches(weights),
        fused=not any(name.endswith("running_mean") for name in weights),
        pointwise_scale=any(".primary_conv.rbr_scale." in name for name in weights),
    )
    candidates = [replace(config, width_factor=width) for width in widths]
    fitting = next((candidate for candidate in candidates if not _misfits(candidate, weights)), None)
    # A damaged file fits none: the nearest, so that what is damaged can be named.
    return fitting or min(candidates, key=lambda candidate: _misfits(candidate, weights))


def names_a_network(weights: _Shapes) -> bool:
    """Whether these names are those of a network of this project's family."""
    try:
        return bool(_kind(weights))
    except CheckpointError:
        return False


def width_candidates(kind: str, stem_channels: int) -> list[float]:
    """Width factors that give a network's first layer this many channels, round ones first.

    Channels are rounded down (to even numbers in GhostOne), so several widths are possible: 51 of 64 channels are a
    width of 0.8, or 0.81. The last candidate is the plain ratio.
    """
    base = _STEMS.get(kind, 64)
    lowest, above = stem_channels / base, (stem_channels + (2 if kind == "pfld-ghostone" else 1)) / base
    round_ones = (step / steps for steps in (10, 8, 20, 100) for step in range(steps // 10, 8 * steps + 1))
    return list(dict.fromkeys([*(w for w in round_ones if lowest - 1e-6 <= w < above - 1e-6 and w >= 0.1), lowest]))


def _misfits(config: ModelConfig, weights: _Shapes) -> int:
    """Count the weights that have another shape than this configuration gives them."""
    with torch.device("meta"):
        expected = build_model(config).state_dict()
    return sum(value.shape != expected[name].shape for name, value in weights.items() if name in expected)


def _first_convolutions(kind: str) -> tuple[str, ...]:
    return _block_weights("blocks.0" if kind in _STEMS else "conv1")


def _block_weights(block: str) -> tuple[str, ...]:
    return f"{block}.0.weight", f"{block}.rbr_conv.0.conv.weight", f"{block}.reparam_conv.weight"


def _kind(weights: _Shapes) -> str:
    """Each kind has a name that the others lack; Slim differs from GhostNet by a width only."""
    if any(name.startswith("blocks.0.") for name in weights):
        if _HEAT in weights:
            return "pfld-edge-m"
        if "fc.weight" in weights and "fc.bias" in weights:
            return "pfld-edge-s"
    if any(name in weights for name in _first_convolutions("pfld-ghostone")[1:]):
        return "pfld-ghostone"
    if "conv3_1.inv_res.0.0.weight" in weights:
        return "pfld"
    if "conv3_1.ghost_conv.0.primary_conv.0.weight" in weights:
        # Hidden half-width over the stem's width: 64 / 64 in GhostNet, 48 / 64 in Slim.
        half, stem, _, _ = _shape(weights, "conv3_1.ghost_conv.0.primary_conv.0.weight", axes=4)
        return "pfld-ghostnet" if half / max(stem, 1) > 0.875 else "pfld-ghostnet-slim"
    names = ", ".join(list(weights)[:3])
    raise CheckpointError(
        "weights of an unknown network: expected those of pfld, pfld-ghostnet, pfld-ghostnet-slim, pfld-ghostone, "
        f"pfld-edge-s or pfld-edge-m, found names like {names or 'none at all'}"
    )


def _input_size(weights: _Shapes, kind: str) -> int:
    if kind == "pfld-edge-m":
        return round(math.sqrt(_shape(weights, "fc.grid", axes=2)[0])) * 8
    if kind == "pfld-edge-s":
        return round(math.sqrt(_shape(weights, "fc.weight", axes=2)[1] / 16)) * 16
    return _shape(weights, "conv8.0.weight", axes=4)[-1] * 16


def _num_landmarks(weights: _Shapes) -> int:
    if _HEAT in weights:
        return _shape(weights, _HEAT, axes=4)[0]
    outputs = _shape(weights, "fc.weight", axes=2)[0]
    if outputs % 2:
        raise CheckpointError(f"the last layer has {outputs} outputs, expected an x and a y for each landmark")
    return outputs // 2


def _conv_branches(weights: _Shapes) -> int:
    found = (re.search(r"\.rbr_conv\.(\d{1,3})\.", name) for name in weights)
    return max((int(match.group(1)) for match in found if match), default=0) + 1


def _shape(weights: _Shapes, name: str, axes: int) -> tuple[int, ...]:
    if name not in weights:
        raise CheckpointError(f"the weights lack {name}, which every network of this kind has")
    shape = tuple(weights[name].shape)
    if len(shape) != axes:
        raise CheckpointError(f"{name} should have {axes} axes, found shape {shape}")
    return shape
