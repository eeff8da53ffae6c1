"""Losses on landmarks in pixels of the network's input, and the weights of faces.

A landmark's loss is the mean over its coordinates. `LossConfig` names the losses and their parameters.

PFLD (Guo et al., arXiv 1902.10859, section 3.2, equation 2) multiplies each face's loss by
``sum over c of omega_c * sum over k of (1 - cos theta_k)``: c are the classes that the face belongs to, omega_c is the
inverse of the class's share of the training faces, theta_k are the errors of the predicted yaw, pitch and roll.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pfld_edge_runtime import Contract
from pfld_edge_train.batches import Batch
from pfld_edge_train.config import LossConfig
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.pose import POSE_SCHEME, head_angles

_RAREST = 0.01
"""Least frequency of an attribute in its weight: one mislabelled face must not outweigh a batch."""
_FRONTAL = 0.48
"""Distance of the outer eye corners as a share of the crop: the median of frontal faces."""


def wing_loss(error: Tensor, w: float = 10.0, epsilon: float = 2.0) -> Tensor:
    """Wing loss (Feng et al., "Wing Loss for Robust Facial Landmark Localisation", CVPR 2018, equation 5).

    ``w * ln(1 + |x| / epsilon)`` below `w`, ``|x| - C`` above, with C such that the parts meet. `w` and `epsilon` are
    pixels: on coordinates in 0..1 the loss would never leave its logarithmic part.
    """
    return torch.where(error < w, w * torch.log1p(error / epsilon), error - w + w * math.log1p(w / epsilon))


def adaptive_wing_loss(
    error: Tensor, omega: float = 14.0, theta: float = 10.0, epsilon: float = 2.0, alpha: float = 2.1
) -> Tensor:
    """Adaptive wing loss (Wang et al., "Adaptive Wing Loss", ICCV 2019, arXiv 1904.07399) on coordinates.

    ``omega * ln(1 + |x / epsilon| ** (alpha - y))`` below `theta`, ``A |x| - C`` above, with A and C such that value
    and slope meet. The paper's y is the true value of a heatmap's pixel; coordinates have no background, so y is 1, the
    loss of a foreground pixel. `omega` and `alpha` are the paper's; its theta and epsilon count heatmap values, here
    they are wing loss's pixels. Unlike wing loss's, the gradient is continuous.
    """
    exponent = alpha - 1
    ratio = (theta / epsilon) ** exponent
    slope = omega * exponent * ratio / theta / (1 + ratio)
    offset = theta * slope - omega * math.log1p(ratio)
    curve = omega * torch.log1p((error / epsilon) ** exponent)
    return torch.where(error < theta, curve, slope * error - offset)


def soft_wing_loss(error: Tensor, omega1: float = 2.0, omega2: float = 20.0, epsilon: float = 2.0) -> Tensor:
    """Soft wing loss (Lin et al., "Structure-Coherent Deep Feature Learning for Robust Face Alignment", IEEE TIP 2021).

    ``|x|`` below `omega1`, ``omega2 * ln(1 + |x| / epsilon) + B`` above, with B such that the parts meet. The defaults
    are those of the authors' code, where it is called wider wing loss.
    """
    offset = omega1 - omega2 * math.log1p(omega1 / epsilon)
    return torch.where(error < omega1, error, omega2 * torch.log1p(error / epsilon) + offset)


def smooth_l1_loss(error: Tensor, beta: float = 1.0) -> Tensor:
    """``x^2 / (2 * beta)`` below `beta`, ``|x| - beta / 2`` above (Girshick, "Fast R-CNN", ICCV 2015, equation 3)."""
    return torch.where(error < beta, error.square() / (2 * beta), error - beta / 2)


_LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "wing": wing_loss,
    "adaptive-wing": adaptive_wing_loss,
    "soft-wing": soft_wing_loss,
    "smooth-l1": smooth_l1_loss,
    "l2": torch.square,  # half the squared distance that PFLD minimises (arXiv 1902.10859, equation 1)
    "l1": torch.abs,
}
"""By `LossConfig.kind`: absolute errors in pixels to losses."""


def point_loss(config: LossConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Choose ``config.kind`` with its parameters: predicted and true ``(N, P, 2)`` pixels to ``(N, P)``."""
    prefix = f"{config.kind.replace('-', '_')}_"
    settings = {name.removeprefix(prefix): value for name, value in vars(config).items() if name.startswith(prefix)}
    return lambda predicted, target: _LOSSES[config.kind]((predicted - target).abs(), **settings).mean(dim=2)


def attribute_frequencies(attributes: Tensor, counts: Tensor | None = None) -> Tensor:
    """Share of faces that have each attribute, ``(6,)`` float32 from 0 to 1.

    `attributes` ``(N, 6)`` bool are those of all training faces, `counts` ``(N,)`` how often an epoch shows each (None:
    once).
    """
    shown = torch.ones(len(attributes)) if counts is None else counts.float()
    return (attributes.float() * shown[:, None]).sum(dim=0) / shown.sum().clamp_min(1)


def attribute_factors(frequencies: Tensor, *, floor: float = _RAREST) -> Tensor:
    """Invert the frequencies: ``(6,)`` to ``(6,)``; 0 for an attribute that no face has."""
    return torch.where(frequencies > 0, 1 / frequencies.clamp_min(floor), 0.0)


def attribute_weights(attributes: Tensor, frequencies: Tensor, mode: str) -> Tensor:
    """Weigh faces with attributes ``(N, 6)`` bool by the training faces' `attribute_frequencies`: ``(N,)``.

    `mode` is `LossConfig.attribute_weight`. With ``paper`` a face without any attribute weighs nothing; with
    ``balanced`` the mean over the training faces is 1.
    """
    if mode == "none":
        return torch.ones(len(attributes), device=attributes.device)
    factors = attribute_factors(frequencies, floor=_RAREST if mode == "balanced" else 0.0)
    total = attributes.float() @ factors
    return total if mode == "paper" else (1 + total) / (1 + frequencies @ factors)


def pose_deviation(predicted: Tensor, true: Tensor) -> Tensor:
    """Sum ``1 - cos`` of the errors of ``(N, 3)`` angles in radians: ``(N,)`` from 0 to 6.

    Where the true angles are unknown (NaN) the deviation is 0.
    """
    known = true.isfinite().all(dim=1)
    # Masked before the cosine: a NaN that is masked later still has a NaN gradient.
    error = torch.where(known[:, None], predicted - true, 0.0)
    return (1 - torch.cos(error)).sum(dim=1)


def pose_weights(true: Tensor, deviation: Tensor | None, config: LossConfig) -> Tensor:
    """Weigh faces by their pose, ``(N,)``; 1 where it is unknown.

    `true` ``(N, 3)`` are yaw, pitch, roll in radians, NaN where unknown; `deviation` ``(N,)`` is `pose_deviation`, None
    where no angles are predicted. `LossConfig.pose_weight` says how. ``paper``: the deviation, with its gradient.
    ``deviation``: one plus it, without gradient. ``turned``: one plus ``1 - cos`` of yaw and pitch; roll hides no
    feature.
    """
    known = true.isfinite().all(dim=1)
    if config.pose_weight == "turned":
        return 1 + torch.where(known[:, None], 1 - torch.cos(true[:, :2]), 0.0).sum(dim=1)
    if config.pose_weight == "none" or deviation is None:
        return torch.ones_like(known, dtype=torch.float32)
    if config.pose_weight == "deviation":
        return 1 + deviation.detach()
    return torch.where(known, deviation, 1.0)


class LandmarkLoss:
    """The loss of a training step, after PFLD (Guo et al., arXiv 1902.10859, equation 2).

    The mean over landmarks, weighted by the weight of each, of ``face weight * loss + auxiliary_weight * deviation``.
    The loss is `LossConfig.kind`'s in pixels, the face weight the product of `pose_weights` and `attribute_weights`,
    the deviation the sum of ``1 - cos`` of the predicted angles' errors. See ``docs/losses.md``.
    """

    def __init__(
        self, config: LossConfig, input_size: int, contract: Contract, attribute_frequencies: Tensor | None = None
    ) -> None:
        """Check that the configuration fits the data.

        TrainConfigError where pose is asked for and the scheme is not WFLW's, or attributes are and no face has any.
        """
        scheme = contract.landmarks.name
        if config.needs_pose and scheme != POSE_SCHEME:
            raise TrainConfigError(
                f"loss: pose_weight and auxiliary_weight need {POSE_SCHEME} points, whose places on a head are known; "
                f"the network has {scheme}: set pose_weight = 'none' and auxiliary_weight = 0"
            )
        if config.attribute_weight != "none" and (attribute_frequencies is None or not attribute_frequencies.any()):
            raise TrainConfigError(
                "loss: attribute_weight needs training faces with WFLW's attributes, and none has any; set "
                "attribute_weight = 'none'"
            )
        self._config, self._input_size = config, input_size
        self._points = contract.landmarks.normalizing_points
        self._point_loss = point_loss(config)
        self._frequencies = torch.zeros(6) if attribute_frequencies is None else attribute_frequencies.float()

    def __call__(
        self, predicted: Tensor, batch: Batch, predicted_angles: Tensor | None = None, normalizer: Tensor | None = None
    ) -> Tensor:
        """Compute the loss of ``(N, P, 2)`` fractions of the crop, a scalar.

        The batch lies on the same device. `predicted_angles` are ``(N, 3)`` yaw, pitch, roll in radians, needed where
        the configuration `needs_auxiliary`. The sum over landmarks is divided by `normalizer`; None for
        ``batch.weights.sum()``. Where the batch is spread over W processes whose gradients are averaged it is the sum
        over all of them, divided by W.
        """
        config = self._config
        losses = self._point_loss(predicted.float() * self._input_size, batch.landmarks * self._input_size)
        if self._frequencies.device != batch.attributes.device:
            self._frequencies = self._frequencies.to(batch.attributes.device)
        losses = losses * attribute_weights(batch.attributes, self._frequencies, config.attribute_weight)[:, None]
        if config.eye_normalized:
            losses = losses * self._eye_weights(batch)[:, None]
        if config.needs_pose:
            true = head_angles(batch.landmarks, batch.weights)
            deviation = None
            if config.needs_auxiliary:
                if predicted_angles is None:
                    raise ValueError("this loss needs the auxiliary network's angles")
                deviation = pose_deviation(predicted_angles.float(), true)
            losses = losses * pose_weights(true, deviation, config)[:, None]
            if deviation is not None and config.auxiliary_weight:
                losses = losses + config.auxiliary_weight * deviation[:, None]
        total = batch.weights.sum() if normalizer is None else normalizer
        return (losses * batch.weights).sum() / total

    def _eye_weights(self, batch: Batch) -> Tensor:
        """The inverse distance of the normalizing points, ``(N,)``; 1 for a frontal face, and where it is unknown."""
        first, second = self._points
        distance = (batch.landmarks[:, first] - batch.landmarks[:, second]).norm(dim=1)
        known = (batch.weights[:, first] > 0) & (batch.weights[:, second] > 0)
        return torch.where(known, _FRONTAL * distance.clamp_min(_FRONTAL / 4).reciprocal(), 1.0)
