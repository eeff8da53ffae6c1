"""Layers that keep their weights while others train."""

from collections.abc import Sequence

from torch import nn

from pfld_edge_train.errors import TrainConfigError

__all__ = ["BACKBONE", "LAST_LAYER", "freeze_layers", "training_mode"]

LAST_LAYER = "fc"
"""The layer of every network that gives the landmarks."""

BACKBONE = "backbone"
"""Stands for all layers but the last."""


def freeze_layers(model: nn.Module, names: Sequence[str]) -> None:
    """Keep some parameters as they are.

    Args:
        model: Changed in place.
        names: Beginnings of layers' names, whole words between dots; `BACKBONE` for all but the last layer.

    Raises:
        TrainConfigError: A name fits no layer, or nothing would be left to train.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        fitting = [key for key in parameters if _belongs(key, name)]
        if not fitting:
            layers = dict.fromkeys(key.split(".")[0] for key in parameters)
            raise TrainConfigError(f"finetune, freeze: no layer {name!r}; the network has {', '.join(layers)}")
        for key in fitting:
            parameters[key].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise TrainConfigError("finetune, freeze: nothing is left to train; leave a layer out")


def training_mode(model: nn.Module) -> None:
    """Put a network into training, but for what is frozen: its BatchNorm goes by its own statistics.

    Batch statistics would change the layer's output, and move the running statistics away from its weights.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _belongs(parameter: str, name: str) -> bool:
    if name == BACKBONE:
        return not parameter.startswith(f"{LAST_LAYER}.")
    return parameter == name or parameter.startswith(f"{name}.")
