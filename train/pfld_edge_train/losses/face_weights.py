"""What PFLD weighs faces by: their attributes' rarity, their pose and the error of the predicted pose.

Equation 2 of the paper (Guo et al., arXiv 1902.10859, section 3.2) multiplies each face's loss by
``sum over c of omega_c * sum over k of (1 - cos theta_k)``: c are the classes that the face belongs to, omega_c is the
inverse of the class's share of the training faces, theta_k are the errors of the predicted yaw, pitch and roll.
"""

import torch
from torch import Tensor

from pfld_edge_train.loss_config import LossConfig

__all__ = ["attribute_factors", "attribute_frequencies", "attribute_weights", "pose_deviation", "pose_weights"]

_RAREST = 0.01
"""Attributes rarer than this weigh as if they were not: one mislabelled face must not outweigh a batch."""


def attribute_frequencies(attributes: Tensor, counts: Tensor | None = None) -> Tensor:
    """Find the share of faces that have each attribute.

    Args:
        attributes: ``(N, 6)`` bool, of all training faces.
        counts: ``(N,)`` how often an epoch shows each face; None: once.

    Returns:
        ``(6,)`` float32 from 0 to 1.
    """
    shown = torch.ones(len(attributes)) if counts is None else counts.float()
    return (attributes.float() * shown[:, None]).sum(dim=0) / shown.sum().clamp_min(1)


def attribute_factors(frequencies: Tensor, *, floor: float = _RAREST) -> Tensor:
    """Invert the frequencies: ``(6,)`` to ``(6,)``; 0 for an attribute that no face has."""
    return torch.where(frequencies > 0, 1 / frequencies.clamp_min(floor), 0.0)


def attribute_weights(attributes: Tensor, frequencies: Tensor, mode: str) -> Tensor:
    """Weigh faces by their attributes.

    Args:
        attributes: ``(N, 6)`` bool.
        frequencies: ``(6,)`` of the training faces, see `attribute_frequencies`.
        mode: As `LossConfig.attribute_weight`. With ``paper`` a face without any attribute weighs nothing; with
            ``balanced`` the mean over the training faces is 1.

    Returns:
        ``(N,)``.
    """
    if mode == "none":
        return torch.ones(len(attributes), device=attributes.device)
    factors = attribute_factors(frequencies, floor=_RAREST if mode == "balanced" else 0.0)
    total = attributes.float() @ factors
    return total if mode == "paper" else (1 + total) / (1 + frequencies @ factors)


def pose_deviation(predicted: Tensor, true: Tensor) -> Tensor:
    """Sum ``1 - cos`` of the angles' errors.

    Args:
        predicted: ``(N, 3)`` radians.
        true: ``(N, 3)`` radians; NaN where unknown.

    Returns:
        ``(N,)`` from 0 to 6; 0 where the true angles are unknown.
    """
    known = true.isfinite().all(dim=1)
    # Masked before the cosine: a NaN that is masked later still has a NaN gradient.
    error = torch.where(known[:, None], predicted - true, 0.0)
    return (1 - torch.cos(error)).sum(dim=1)


def pose_weights(true: Tensor, deviation: Tensor | None, config: LossConfig) -> Tensor:
    """Weigh faces by their pose.

    Args:
        true: ``(N, 3)`` yaw, pitch, roll in radians; NaN where unknown.
        deviation: ``(N,)`` from `pose_deviation`; None where no angles are predicted.
        config: `LossConfig.pose_weight` is read. ``paper``: the deviation, with its gradient. ``deviation``: one plus
            it, without gradient. ``turned``: one plus ``1 - cos`` of yaw and pitch; roll hides no feature.

    Returns:
        ``(N,)``; 1 where the pose is unknown.
    """
    known = true.isfinite().all(dim=1)
    if config.pose_weight == "turned":
        return 1 + torch.where(known[:, None], 1 - torch.cos(true[:, :2]), 0.0).sum(dim=1)
    if config.pose_weight == "none" or deviation is None:
        return torch.ones_like(known, dtype=torch.float32)
    if config.pose_weight == "deviation":
        return 1 + deviation.detach()
    return torch.where(known, deviation, 1.0)
