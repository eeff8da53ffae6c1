"""Exponential moving average of a network's weights."""

import copy

import torch
from torch import Tensor, nn

__all__ = ["ema_copy", "update_ema"]


def ema_copy(model: nn.Module) -> nn.Module:
    """Copy a network to hold the average; it is never trained itself."""
    average = copy.deepcopy(model).eval()
    for parameter in average.parameters():
        parameter.requires_grad_(False)
    return average


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the network.

    Args:
        average: From `ema_copy`.
        model: The network in training.
        decay: Share of the average that stays, 0 to 1.
        step: Steps done; early steps use a smaller decay, so that the random start is forgotten.
    """
    keep = min(decay, (1 + step) / (10 + step))
    state = model.state_dict()
    floats: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            floats[0].append(value)
            floats[1].append(state[name])
        else:
            value.copy_(state[name])
    # All in one call: hundreds of small ones would keep a GPU waiting.
    torch._foreach_lerp_(*floats, 1 - keep)
