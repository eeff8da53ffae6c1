"""Recognizes a network of the PFLD family by the names and shapes of its weights, as public projects publish it.

The projects build the same layers under other names: `SPELLINGS` is the dictionary. Kind, width, input size and number
of landmarks follow from the names and shapes.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pfld_edge_runtime import CropRule
from pfld_edge_train.errors import CheckpointError
from pfld_edge_train.models import MODEL_KINDS, ModelConfig, build_model
from pfld_edge_train.models.edge import HEAT, SHAPES, edge_kind

_FIRST_CHANNELS = 64
"""Of the first block of the published networks; see `SHAPES` for our own."""

_BLOCKS = "conv3_1 conv3_2 conv3_3 conv3_4 conv3_5 conv4 conv5_1 conv5_2 conv5_3 conv5_4 conv5_5 conv5_6 conv6"
_LAYERS = "inv_res.0.0 inv_res.0.1 inv_res.1.0 inv_res.1.1 inv_res.2.0 inv_res.2.1"
"""A bottleneck's three convolutions, each with the BatchNorm behind it."""

_FIRST_BLOCK = "conv3_1.inv_res.0.0.weight"


@dataclass(frozen=True, slots=True)
class Spelling:
    """Names of PFLD's modules in a public project: in the order of `_BLOCKS` and `_LAYERS`, and of all others."""

    blocks: str
    layers: str
    others: Mapping[str, str]

    def modules(self) -> dict[str, str]:
        """Our name of each module that has weights, by theirs."""
        pairs = zip(self.blocks.split(), _BLOCKS.split(), strict=True)
        layers = list(zip(self.layers.split(), _LAYERS.split(), strict=True))
        blocks = {f"{theirs}.{layer}": f"{ours}.{mine}" for theirs, ours in pairs for layer, mine in layers}
        return blocks | dict(self.others)


_ZHAO_BLOCKS = (
    "conv3_1 block3_2 block3_3 block3_4 block3_5 conv4_1 conv5_1 block5_2 block5_3 block5_4 block5_5 block5_6 conv6_1"
)
_ZHAO_LAYERS = "conv.0 conv.1 conv.3 conv.4 conv.6 conv.7"
_STEM = {"conv1": "conv1.0", "bn1": "conv1.1"}
_ZHAO_ENDS = {**_STEM, "conv7.0": "conv7.0", "conv7.1": "conv7.1", "conv8": "conv8.0", "bn8": "conv8.1", "fc": "fc"}

SPELLINGS: Mapping[str, Spelling] = MappingProxyType(
    {
        "pfld-polariszhao": Spelling(_ZHAO_BLOCKS, _ZHAO_LAYERS, {**_ZHAO_ENDS, "conv2": "conv2.0", "bn2": "conv2.1"}),
        "pfld-cunjian": Spelling(
            _ZHAO_BLOCKS,
            _ZHAO_LAYERS,
            {**_ZHAO_ENDS, "dw_pool": "conv2.0", "dw_bn": "conv2.1", "conv1_extra": "conv2_1.0"},
        ),
        "pfld-amrelsersy": Spelling(
            "bottleneck_1_first bottleneck_1.0 bottleneck_1.1 bottleneck_1.2 bottleneck_1_last bottleneck_2 "
            "bottleneck_3.0 bottleneck_3.1 bottleneck_3.2 bottleneck_3.3 bottleneck_3.4 bottleneck_3.5 bottleneck_4",
            "expantion_pointwise_conv bn1 depth_wise_conv bn2 squeeze_pointwise_conv bn3",
            {
                "conv.0": "conv1.0",
                "conv.1": "conv1.1",
                "depth_wise_conv.depth_wise_conv": "conv2.0",
                "depth_wise_conv.bn1": "conv2.1",
                "depth_wise_conv.point_wise_conv": "conv2_1.0",
                "depth_wise_conv.bn2": "conv2_1.1",
                "conv1.0": "conv7.0",
                "conv1.1": "conv7.1",
                "conv2.0": "conv8.0",
                "fc": "fc",
            },
        ),
        "pfld-luffy": Spelling(
            "stage0.LinearBottleneck0_0 stage0.LinearBottleneck0_1 stage0.LinearBottleneck0_2 "
            "stage0.LinearBottleneck0_3 stage0.LinearBottleneck0_4 "
            "stage1.LinearBottleneck1_0 stage1.LinearBottleneck1_1 stage1.LinearBottleneck1_2 "
            "stage1.LinearBottleneck1_3 stage1.LinearBottleneck1_4 stage1.LinearBottleneck1_5 "
            "stage1.LinearBottleneck1_6 linear_bottleneck_end.0",
            "conv1 bn1 depth_conv2 bn2 conv3 bn3",
            {
                **_STEM,
                "depth_conv2": "conv2.0",
                "bn2": "conv2.1",
                "conv3": "conv7.0",
                "bn3": "conv7.1",
                "conv4": "conv8.0",
                "bn4": "conv8.1",
                "fc": "fc",
            },
        ),
    }
)
"""The projects whose names differ from ours, which are AnthonyF333's, by kind of network."""

_UNIT: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "scale": (255.0, 255.0, 255.0)}
_UNIT_RGB = {**_UNIT, "color_order": "rgb", "crop": CropRule(margin=1.1)}
PROTOCOLS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"pfld-polariszhao": _UNIT, "pfld-amrelsersy": _UNIT, "pfld-cunjian": _UNIT_RGB, "pfld-luffy": _UNIT_RGB}
)
"""Preprocessing in each project, as fields of a contract; of the others it is the contract's default."""


def read_published(weights: Mapping[str, Tensor], kind: str) -> tuple[dict[str, Tensor], ModelConfig]:
    """Give a state dict without prefixes our names, and find its configuration; `kind` is that of `network_kind`."""
    theirs = kind in SPELLINGS and _FIRST_BLOCK not in weights
    ours = _renamed(weights, SPELLINGS[kind].modules()) if theirs else dict(weights)
    return ours, infer_config(ours, kind)


def _renamed(weights: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, Tensor]:
    """Give the weights our names; biases before a BatchNorm become part of its mean, conv8's BatchNorm of conv8."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        found[f"{modules.get(module, module)}.{leaf}"] = value
    norm = {name.rpartition(".")[2]: found.pop(name) for name in list(found) if name.startswith("conv8.1.")}
    # Some forks run conv8's BatchNorm and some only hold it: it has counted batches where it ran.
    if {"weight", "bias", "running_mean", "running_var"} <= norm.keys() and _ran(norm) and "conv8.0.weight" in found:
        factor = norm["weight"].double() / (norm["running_var"].double() + 1e-5).sqrt()
        bias = found.get("conv8.0.bias", torch.zeros_like(norm["bias"]))
        found["conv8.0.weight"] = (found["conv8.0.weight"] * factor.view(-1, 1, 1, 1)).float()
        found["conv8.0.bias"] = ((bias - norm["running_mean"]) * factor + norm["bias"]).float()
    for name in [name for name in found if name.endswith(".0.bias")]:
        mean = f"{name.removesuffix('0.bias')}1.running_mean"
        if mean in found and found[mean].shape == found[name].shape:
            found[mean] = found[mean] - found.pop(name)
    return found


def _ran(norm: Mapping[str, Tensor]) -> bool:
    return bool((norm["running_mean"] != 0).any() or (norm["running_var"] != 1).any())


def unknown_network(spellings: Sequence[Mapping[str, Tensor]]) -> str:
    """Say which known network a state dict is nearest to, and the first names that differ.

    `spellings` are the same weights with and without prefixes.
    """
    known = {kind: set(_published_names(kind)) for kind in MODEL_KINDS}
    pairs = [(set(weights), kind) for weights in spellings for kind in known]

    def shared(pair: tuple[set[str], str]) -> float:
        names, kind = pair
        return len(names & known[kind]) / max(len(names | known[kind]), 1)

    names, kind = max(pairs, key=shared)
    if not names & known[kind]:
        found = ", ".join(list(spellings[0])[:3]) or "none at all"
        return f"weights of an unknown network: expected those of {', '.join(MODEL_KINDS)}, found names like {found}"
    held = SPELLINGS[kind].modules() if kind in SPELLINGS else {}  # with conv8's BatchNorm, which our networks lack
    missing = sorted(known[kind] - names)
    surplus = sorted(name for name in names - known[kind] if name.rpartition(".")[0] not in held)
    lists = (("it lacks", missing), ("it has", surplus))
    verdicts = [f"{verb} {', '.join(some[:2])} ({len(some)} such names)" for verb, some in lists if some]
    return f"weights of an unknown network; nearest is {kind}, but {' and '.join(verdicts)}"


def _published_names(kind: str) -> Iterator[str]:
    with torch.device("meta"):
        names = build_model(ModelConfig(kind)).state_dict()
    theirs = {} if kind not in SPELLINGS else {ours: name for name, ours in SPELLINGS[kind].modules().items()}
    for name in names:
        module, _, leaf = name.rpartition(".")
        yield f"{theirs.get(module, module)}.{leaf}"


def network_kind(weights: Mapping[str, Tensor]) -> str | None:
    """Tell the kind of a network from a state dict without prefixes; None where the names are of no known one.

    Each kind has names that the others lack; Slim differs from GhostNet by a width only.
    """
    for kind, spelling in SPELLINGS.items():
        theirs = {ours: name for name, ours in spelling.modules().items()}
        if all(f"{theirs[layer]}.weight" in weights for layer in ("conv1.0", "conv2.0", "conv3_1.inv_res.0.0")):
            return kind
    if (own := edge_kind(weights)) is not None:
        return own
    if any(name in weights for name in _convolutions("conv1")[1:]):
        return "pfld-ghostone"
    if _FIRST_BLOCK in weights:
        return _pfld_kind(weights)
    if "conv3_1.ghost_conv.0.primary_conv.0.weight" in weights:
        # Hidden half-width over the stem's width: 64 / 64 in GhostNet, 48 / 64 in Slim.
        half, stem, _, _ = _shape(weights, "conv3_1.ghost_conv.0.primary_conv.0.weight", axes=4)
        return "pfld-ghostnet" if half / max(stem, 1) > 0.875 else "pfld-ghostnet-slim"
    return None


def infer_config(weights: Mapping[str, Tensor], kind: str) -> ModelConfig:
    """Find the configuration of a state dict with our names, that of a network of this kind.

    Raises:
        CheckpointError: A layer that tells it is missing or of an impossible shape.
    """
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


def _pfld_kind(weights: Mapping[str, Tensor]) -> str:
    """Tell whose PFLD it is, of a state dict with our names."""
    if "conv2_1.0.weight" in weights:
        hidden, channels, _, _ = _shape(weights, _FIRST_BLOCK, axes=4)
        return "pfld-amrelsersy" if hidden > channels else "pfld-cunjian"
    if _shape(weights, "conv2.0.weight", axes=4)[1] > 1:
        return "pfld-polariszhao"
    return "pfld-luffy" if "conv8.0.bias" in weights else "pfld"


def _input_size(weights: Mapping[str, Tensor], kind: str) -> int:
    if HEAT in weights:
        return round(math.sqrt(_shape(weights, "fc.grid", axes=2)[0])) * 8 // SHAPES[kind].fine
    if kind == "pfld-edge-s1":
        return round(math.sqrt(_shape(weights, "fc.weight", axes=2)[1] / 16)) * 16
    return _shape(weights, "conv8.0.weight", axes=4)[-1] * 16


def _num_landmarks(weights: Mapping[str, Tensor], kind: str) -> int:
    if HEAT in weights:
        return _shape(weights, HEAT, axes=4)[0] // SHAPES[kind].fine ** 2
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
