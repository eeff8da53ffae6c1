"""The classical losses of regression, one value a landmark."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["l1_loss", "l2_loss", "smooth_l1_loss"]


def l1_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """``|x|``, the mean over a landmark's coordinates: ``(N, P, 2)`` pixels to ``(N, P)``."""
    return F.l1_loss(predicted, target, reduction="none").mean(dim=2)


def l2_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """``x ** 2``, the mean over a landmark's coordinates: ``(N, P, 2)`` pixels to ``(N, P)`` square pixels.

    Half the squared distance that PFLD minimises (arXiv 1902.10859, equation 1).
    """
    return F.mse_loss(predicted, target, reduction="none").mean(dim=2)


def smooth_l1_loss(predicted: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth L1 (Girshick, "Fast R-CNN", ICCV 2015, equation 3).

    ``x ** 2 / (2 * beta)`` below `beta`, ``|x| - beta / 2`` above.

    Args:
        predicted: ``(N, P, 2)`` pixels.
        target: ``(N, P, 2)`` pixels.
        beta: Width of the quadratic part; 1 in the paper.

    Returns:
        ``(N, P)``: the mean over a landmark's coordinates.
    """
    return F.smooth_l1_loss(predicted, target, reduction="none", beta=beta).mean(dim=2)
