"""Learning rates that differ from layer to layer."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from pfld_edge_train.finetune_config import FinetuneConfig
from pfld_edge_train.frozen_layers import LAST_LAYER

__all__ = ["layer_factors", "parameter_groups"]


def parameter_groups(
    model: nn.Module, weight_decay: float, config: FinetuneConfig, auxiliary: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Sort the parameters that train by decay and rate, for an optimizer.

    Args:
        model: The landmark network; frozen parameters are left out.
        weight_decay: Of weights with more than one axis; biases and BatchNorm's factors are not decayed.
        config: Rates.
        auxiliary: Trains at the run's own rate.

    Returns:
        Groups with their factor to the run's learning rate as ``rate``, the last layer's first; decayed before
        free.
    """
    factors = layer_factors(model, config)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for factor in sorted({1.0, *factors.values()}, reverse=True):
        groups |= {(factor, True): [], (factor, False): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[factors[name], parameter.ndim > 1].append(parameter)
    for parameter in () if auxiliary is None else auxiliary.parameters():
        groups[1.0, parameter.ndim > 1].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decayed else 0.0, "rate": factor}
        for (factor, decayed), parameters in groups.items()
        if parameters
    ]


def layer_factors(model: nn.Module, config: FinetuneConfig) -> dict[str, float]:
    """Give each parameter's factor to the run's learning rate: 1 in the last layer."""
    layers = [layer for layer in dict(_layers(model)) if layer != LAST_LAYER]
    of_layer = {
        layer: config.backbone_rate * config.layer_decay**distance
        for distance, layer in enumerate(reversed(layers), start=1)
    } | {LAST_LAYER: 1.0}
    owners = {name: layer for layer, module in _layers(model) for name, _ in module.named_parameters(prefix=layer)}
    return {name: of_layer[layer] for name, layer in owners.items()}


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name a network's layers from its input on; a sequence of blocks is as many layers."""
    for name, child in model.named_children():
        blocks = list(child.named_children()) if isinstance(child, nn.Sequential) else []
        # A convolution with its BatchNorm is a sequence too, but one layer.
        if blocks and all(any(True for _ in block.children()) for _, block in blocks):
            yield from ((f"{name}.{inner}", block) for inner, block in blocks)
        else:
            yield name, child
