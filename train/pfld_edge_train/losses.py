"""Losses on landmarks, in pixels of the network's input."""

import math

import torch
from torch import Tensor

__all__ = ["wing_loss"]


def wing_loss(predicted: Tensor, target: Tensor, w: float = 10.0, epsilon: float = 2.0) -> Tensor:
    """Wing loss (Feng et al., "Wing Loss for Robust Facial Landmark Localisation", CVPR 2018, equation 5).

    ``w * ln(1 + |x| / epsilon)`` below `w`, ``|x| - C`` above, with C such that the parts meet. `w` and `epsilon` are
    pixels: on coordinates in 0..1 the loss would never leave its logarithmic part.

    Args:
        predicted: ``(N, P, 2)`` pixels.
        target: ``(N, P, 2)`` pixels.
        w: Width of the logarithmic part.
        epsilon: Its curvature.

    Returns:
        ``(N, P)``: the mean over a landmark's coordinates.
    """
    error = (predicted - target).abs()
    offset = w - w * math.log(1 + w / epsilon)
    loss = torch.where(error < w, w * torch.log1p(error / epsilon), error - offset)
    return loss.mean(dim=2)
