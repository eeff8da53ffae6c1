"""Configuration and interface of all networks, and PFLD's auxiliary network."""

from dataclasses import dataclass

from torch import Tensor, nn

from pfld_edge_train.blocks import conv_block
from pfld_edge_train.errors import ModelConfigError


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A network's kind and size.

    `kind` is one of `pfld_edge_train.models.MODEL_KINDS`, `width_factor` multiplies the channels, `input_size` is in
    pixels. `conv_branches` are those of each MobileOne block in training; 1 for kinds without such blocks. `fused` is
    the inference form: branches and BatchNorm are merged into one convolution with bias each. With `pointwise_scale`
    GhostOne's 1x1 blocks have a scale branch too, for checkpoints that hold one. ModelConfigError where a value is out
    of range.
    """

    kind: str
    width_factor: float = 1.0
    input_size: int = 112
    num_landmarks: int = 98
    conv_branches: int = 1
    fused: bool = False
    pointwise_scale: bool = False

    def __post_init__(self) -> None:
        if self.input_size % 16 or not 32 <= self.input_size <= 1024:
            raise ModelConfigError(f"input size must be a multiple of 16 from 32 to 1024 pixels, not {self.input_size}")
        if not 0.1 <= self.width_factor <= 8:
            raise ModelConfigError(f"width factor must be from 0.1 to 8, not {self.width_factor}")
        if self.num_landmarks < 1 or self.conv_branches < 1:
            raise ModelConfigError("a network needs at least one landmark and one convolution branch")

    def scaled(self, channels: int) -> int:
        """Apply the width factor, rounding down."""
        # The sum keeps 80 * 0.7 = 55.99999 at 56.
        return max(1, int(channels * self.width_factor + 1e-6))


class LandmarkNet(nn.Module):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop."""

    feature_channels: int
    """Of the map that `forward_features` gives."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, 3, S, S)`` to ``(N, 2 * num_landmarks)``."""
        return self.forward_features(x)[0]

    def run(self, x: Tensor, *layers: str) -> Tensor:
        """Run some layers by name, one after the other."""
        for name in layers:
            x = self.get_submodule(name)(x)
        return x

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and the map ``(N, feature_channels, S / 4, S / 4)`` on the way to them."""
        raise NotImplementedError


class AuxiliaryNet(nn.Module):
    """Feature maps ``(N, channels, S / 4, S / 4)`` to angles ``(N, 3)``: yaw, pitch, roll in radians.

    After PFLD (Guo et al., arXiv 1902.10859, section 3.3 and table 2): 3x3 convolutions to 128 (stride 2), 128 and 32
    (stride 2) channels, a convolution over the whole map to 128, fully connected layers of 32 and 3. It is used in
    training only, and no part of the landmark network.
    """

    def __init__(self, channels: int, input_size: int = 112) -> None:
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
    """A landmark network and its auxiliary network as one module with one forward pass, for DistributedDataParallel."""

    def __init__(self, network: LandmarkNet, auxiliary: AuxiliaryNet) -> None:
        super().__init__()
        self.network = network
        self.auxiliary = auxiliary

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)`` and angles ``(N, 3)``."""
        landmarks, features = self.network.forward_features(x)
        return landmarks, self.auxiliary(features)
