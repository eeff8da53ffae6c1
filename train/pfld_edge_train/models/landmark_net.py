"""What all networks have in common: landmarks, and a feature map on the way to them."""

from torch import Tensor, nn

__all__ = ["FEATURE_STRIDE", "LandmarkNet"]

FEATURE_STRIDE = 4
"""Pixels of the input a pixel of the feature map, in every network: 28 x 28 at 112, as in PFLD's paper."""


class LandmarkNet(nn.Module):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop.

    Attributes:
        feature_channels: Channels of the feature map that `forward_features` gives.
    """

    feature_channels: int

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, 3, S, S)`` to ``(N, 2 * num_landmarks)``."""
        return self.forward_features(x)[0]

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and the map ``(N, feature_channels, S / 4, S / 4)`` on the way to them."""
        raise NotImplementedError
