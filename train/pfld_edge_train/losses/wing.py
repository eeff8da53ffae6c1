"""Wing loss and its relatives: more weight for small and middling errors than L1 and L2 give them."""

import math

import torch
from torch import Tensor

__all__ = ["adaptive_wing_loss", "soft_wing_loss", "wing_loss"]


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


def adaptive_wing_loss(
    predicted: Tensor,
    target: Tensor,
    omega: float = 14.0,
    theta: float = 10.0,
    epsilon: float = 2.0,
    alpha: float = 2.1,
) -> Tensor:
    """Adaptive wing loss (Wang et al., "Adaptive Wing Loss", ICCV 2019, arXiv 1904.07399) on coordinates.

    ``omega * ln(1 + |x / epsilon| ** (alpha - y))`` below `theta`, ``A |x| - C`` above, with A and C such that value
    and slope meet. The paper's y is the true value of a heatmap's pixel, 0 in the background and 1 on the landmark. A
    coordinate has no background, so y is 1 throughout: the loss of a foreground pixel, with exponent ``alpha - 1``.
    (Code that puts coordinates in place of y gives the loss another shape at every place of the picture.) `omega` and
    `alpha` are the paper's; its theta and epsilon count heatmap values, here they are wing loss's pixels. Unlike wing
    loss's, the gradient is continuous: it vanishes at zero, steeply.

    Args:
        predicted: ``(N, P, 2)`` pixels.
        target: ``(N, P, 2)`` pixels.
        omega: Height of the logarithmic part.
        theta: Width of the logarithmic part.
        epsilon: Its curvature.
        alpha: One more than the exponent, above 2.

    Returns:
        ``(N, P)``: the mean over a landmark's coordinates.
    """
    exponent = alpha - 1
    ratio = (theta / epsilon) ** exponent
    slope = omega * exponent * ratio / theta / (1 + ratio)
    offset = theta * slope - omega * math.log1p(ratio)
    error = (predicted - target).abs()
    curve = omega * torch.log1p((error / epsilon) ** exponent)
    return torch.where(error < theta, curve, slope * error - offset).mean(dim=2)


def soft_wing_loss(
    predicted: Tensor, target: Tensor, omega1: float = 2.0, omega2: float = 20.0, epsilon: float = 2.0
) -> Tensor:
    """Soft wing loss (Lin et al., "Structure-Coherent Deep Feature Learning for Robust Face Alignment", IEEE TIP 2021).

    ``|x|`` below `omega1`, ``omega2 * ln(1 + |x| / epsilon) + B`` above, with B such that the parts meet: small errors,
    which labels have too, are not amplified, middling ones are, and the largest grow slowly. The slope jumps upwards at
    `omega1`, from 1 to ``omega2 / (epsilon + omega1)``. The defaults are those of the authors' code, where it is called
    wider wing loss.

    Args:
        predicted: ``(N, P, 2)`` pixels.
        target: ``(N, P, 2)`` pixels.
        omega1: Width of the linear part.
        omega2: Height of the logarithmic part.
        epsilon: Its curvature.

    Returns:
        ``(N, P)``: the mean over a landmark's coordinates.
    """
    error = (predicted - target).abs()
    offset = omega1 - omega2 * math.log1p(omega1 / epsilon)
    return torch.where(error < omega1, error, omega2 * torch.log1p(error / epsilon) + offset).mean(dim=2)
