"""The whole loss of a training step: on landmarks, weighed by pose and attributes, and on the auxiliary angles."""

import torch
from torch import Tensor

from pfld_edge_runtime import Contract
from pfld_edge_train.batches import Batch
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.loss_config import LossConfig
from pfld_edge_train.losses.face_weights import attribute_weights, pose_deviation, pose_weights
from pfld_edge_train.losses.kinds import point_loss
from pfld_edge_train.pose import POSE_SCHEME, head_angles

__all__ = ["LandmarkLoss"]

_FRONTAL = 0.48
"""Distance of the outer eye corners as a share of the crop: the median of faces that look ahead."""


class LandmarkLoss:
    """What a training step minimises, after PFLD (Guo et al., arXiv 1902.10859, equation 2).

    The mean over landmarks, weighted by the trust in each, of ``face weight * loss + auxiliary_weight * deviation``.
    The loss is `LossConfig.kind`'s in pixels, the face weight the product of `pose_weights` and `attribute_weights`,
    the deviation the sum of ``1 - cos`` of the predicted angles' errors. See ``docs/losses.md``.
    """

    def __init__(
        self, config: LossConfig, input_size: int, contract: Contract, attribute_frequencies: Tensor | None = None
    ) -> None:
        """Check that the parts fit the data.

        Args:
            config: Which loss, and which weights.
            input_size: Side of the network's input in pixels.
            contract: Gives the landmark scheme.
            attribute_frequencies: ``(6,)`` shares of the training faces that have each of WFLW's attributes; needed
                for an `attribute_weight`.

        Raises:
            TrainConfigError: Pose is asked for and the scheme is not WFLW's, or attributes are and no face has any.
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

    @property
    def needs_auxiliary(self) -> bool:
        """Whether `__call__` must be given predicted angles (see `pfld_edge_train.models.AuxiliaryNet`)."""
        return self._config.needs_auxiliary

    def __call__(
        self, predicted: Tensor, batch: Batch, predicted_angles: Tensor | None = None, normalizer: Tensor | None = None
    ) -> Tensor:
        """Compute the loss.

        Args:
            predicted: ``(N, P, 2)`` fractions of the crop.
            batch: The true landmarks, weights and attributes, on the same device.
            predicted_angles: ``(N, 3)`` yaw, pitch, roll in radians, where `needs_auxiliary`.
            normalizer: What the sum over landmarks is divided by; None for ``batch.weights.sum()``. Where the batch is
                spread over W processes whose gradients are averaged: the sum over all processes, divided by W.

        Returns:
            A scalar.

        Raises:
            ValueError: `predicted_angles` are needed and missing.
        """
        config = self._config
        losses = self._point_loss(predicted.float() * self._input_size, batch.landmarks * self._input_size)
        losses = losses * self._attribute_weights(batch)[:, None]
        if config.eye_normalized:
            losses = losses * self._closeness(batch.landmarks)[:, None]
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

    def _closeness(self, landmarks: Tensor) -> Tensor:
        """The inverse distance of the normalizing points, ``(N,)``, 1 for a frontal face in its own box."""
        first, second = self._points
        distance: Tensor = (landmarks[:, first] - landmarks[:, second]).norm(dim=1)
        return _FRONTAL * distance.clamp_min(_FRONTAL / 4).reciprocal()

    def _attribute_weights(self, batch: Batch) -> Tensor:
        if self._frequencies.device != batch.attributes.device:
            self._frequencies = self._frequencies.to(batch.attributes.device)
        return attribute_weights(batch.attributes, self._frequencies, self._config.attribute_weight)
