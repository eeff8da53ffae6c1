"""PFLD's auxiliary network: yaw, pitch and roll from a feature map, while training only."""

from torch import Tensor, nn

from pfld_edge_train.blocks import conv_block
from pfld_edge_train.models.landmark_net import LandmarkNet

__all__ = ["AuxiliaryNet", "WithAuxiliary"]


class AuxiliaryNet(nn.Module):
    """Feature maps ``(N, channels, S / 4, S / 4)`` to angles ``(N, 3)``: yaw, pitch, roll in radians.

    After PFLD (Guo et al., arXiv 1902.10859, section 3.3 and table 2): 3x3 convolutions to 128 (stride 2), 128 and 32
    (stride 2) channels, a convolution over the whole map to 128, fully connected layers of 32 and 3. It is no part of
    the landmark network: checkpoints and what `convert` makes of them don't know it.
    """

    def __init__(self, channels: int, input_size: int = 112) -> None:
        """Build the network.

        Args:
            channels: `LandmarkNet.feature_channels`.
            input_size: Side of the landmark network's input in pixels, a multiple of 16; the convolution over the whole
                map has a kernel of a sixteenth of it, 7 at 112.
        """
        super().__init__()
        self.convolutions = nn.Sequential(
            conv_block(channels, 128, 3, 2, 1),
            conv_block(128, 128, 3, 1, 1),
            conv_block(128, 32, 3, 2, 1),
            conv_block(32, 128, input_size // 16),
        )
        self.fc1 = nn.Linear(128, 32)
        self.fc2 = nn.Linear(32, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(N, channels, S / 4, S / 4)`` to ``(N, 3)`` radians."""
        out: Tensor = self.fc2(self.fc1(self.convolutions(features).flatten(1)))
        return out


class WithAuxiliary(nn.Module):
    """A landmark network and its auxiliary network as one module, in one forward pass.

    For what wraps a module and must see all of its parameters used in one call, such as DistributedDataParallel.
    """

    def __init__(self, network: LandmarkNet, auxiliary: AuxiliaryNet) -> None:
        """Join the two; neither is copied."""
        super().__init__()
        self.network = network
        self.auxiliary = auxiliary

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)`` and angles ``(N, 3)``."""
        landmarks, features = self.network.forward_features(x)
        return landmarks, self.auxiliary(features)
