"""Weights of today's pfld-edge-s and m in the new networks, where the shapes allow.

Activations are rescaled layer by layer so that the bound of 6 cuts off one in some thousand: every convolution is
followed by BatchNorm and a positively homogeneous ReLU, so that scaling one layer's BatchNorm and dividing the next
layer's weights changes nothing.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from networks import HeatMapNet


def today(path: Path) -> dict[str, Tensor]:
    """State dict of a checkpoint with this module's names."""
    record = torch.load(path, map_location="cpu", weights_only=True)
    weights = record["ema_weights"] or record["weights"]
    names = {}
    for key, value in weights.items():
        if ".rbr_conv.0." in key:
            block, _, rest = key.partition(".rbr_conv.0.")
            key = f"{block}.{rest.replace('conv.', '0.').replace('bn.', '1.')}"
        names[key] = value
    return names


def chain(weights: dict[str, Tensor], count: int, images: Tensor) -> list[Tensor]:
    """The checkpoint's maps in front of and behind each block, BatchNorm as in inference."""
    maps = [images]
    for number in range(count):
        conv, norm = weights[f"blocks.{number}.0.weight"], f"blocks.{number}.1."
        x = F.conv2d(maps[-1], conv, stride=2 if conv.shape[0] != conv.shape[1] else 1, padding=1)
        mean, var = weights[norm + "running_mean"], weights[norm + "running_var"]
        maps.append(F.batch_norm(x, mean, var, weights[norm + "weight"], weights[norm + "bias"]).relu())
    return maps


def fitted(inputs: Tensor, before_norm: Tensor, stride: int) -> Tensor:
    """3x3 weights that make of other inputs what a layer made of its own, by least squares with a small ridge."""
    patches = F.unfold(inputs, 3, padding=1, stride=stride).transpose(1, 2).flatten(0, 1)
    target = before_norm.flatten(2).transpose(1, 2).flatten(0, 1)
    normal = patches.T @ patches
    normal += 1e-3 * normal.diagonal().mean() * torch.eye(len(normal))
    return torch.linalg.solve(normal, patches.T @ target).T.reshape(target.shape[1], inputs.shape[1], 3, 3)


@torch.no_grad()
def load(net: HeatMapNet, path: Path, places: list[int | None], images: Tensor) -> list[str]:
    """Fill a network.

    Args:
        net: Changed in place.
        path: Checkpoint of pfld-edge-s or m.
        places: For each block of the network the checkpoint's block; None for random weights. Where the block before
            isn't the checkpoint's, or has fewer channels, weights are fitted to give what the checkpoint's layer gave.
        images: ``(N, 3, S, S)`` faces to fit by.

    Returns:
        What kept its random weights.
    """
    weights = today(path)
    count = 1 + max(int(k.split(".")[1]) for k in weights if k.startswith("blocks."))
    maps = chain(weights, count, images[:96])
    state, random = net.state_dict(), []
    for key in state:
        source = key
        if key.startswith("blocks."):
            _, number, rest = key.split(".", 2)
            source = f"blocks.{places[int(number)]}.{rest}"
        elif key.startswith("joined.0."):
            source = f"joined.{key.removeprefix('joined.0.')}"
        elif key.startswith("heat."):
            source = f"fc.{key}"
        if source not in weights:
            random.append(key)
        elif weights[source].shape == state[key].shape:
            state[key] = weights[source]
        elif key.startswith("heat."):  # the quarters of a cell begin alike
            state[key] = weights[source].repeat_interleave(net.shape.fine**2, 0)
    kept = None
    stem = net.shape.stem
    if stem < len(weights["blocks.0.0.weight"]):  # those channels that the next layer weighs most
        worth = weights["blocks.1.0.weight"].square().sum((0, 2, 3)).sqrt() * maps[1].std((0, 2, 3))
        kept = worth.topk(stem).indices.sort().values
        for part in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
            state[f"blocks.0.{part}"] = weights[f"blocks.0.{part}"][kept]
    for number in range(1, len(places)):
        place, before = places[number], places[number - 1]
        if place is None or before is None or (before == place - 1 and not (number == 1 and kept is not None)):
            continue
        own = weights[f"blocks.{place}.0.weight"]
        stride = 2 if own.shape[0] != own.shape[1] else 1
        inputs = maps[before + 1] if kept is None or number > 1 else maps[1][:, kept]
        state[f"blocks.{number}.0.weight"] = fitted(inputs, F.conv2d(maps[place], own, stride=stride, padding=1), stride)
    net.load_state_dict(state)
    return [key for key in random if key != "places"]


@torch.no_grad()
def rescale(net: HeatMapNet, images: Tensor, target: float = 4.5) -> None:
    """Let one in a thousand activations of each layer exceed `target`, and take BatchNorm's statistics anew."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # plain average over the batches of this function
    net.train()
    seen: dict[int, float] = {}
    last = len(net.blocks) - 1
    for number, block in enumerate(net.blocks):
        hook = block[1].register_forward_hook(
            lambda module, inputs, output, n=number: seen.__setitem__(n, float(output.relu().flatten()[::37].quantile(0.999)))
        )
        net(images[:64])
        hook.remove()
        factor = target / max(seen[number], 1e-6)
        block[1].weight.mul_(factor)
        block[1].bias.mul_(factor)
        if number == net.ends[1] - 1:  # the map that is told by the last stage: both terms of the sum are scaled
            net.lateral[1].weight.mul_(factor)
            net.lateral[1].bias.mul_(factor)
        if number < last:
            net.blocks[number + 1][0].weight.div_(factor)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    for start in range(0, len(images), 64):
        net(images[start : start + 64])
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
