"""pfld-edge-s and pfld-edge-m: our own networks, shaped by what onnxruntime runs fast on a CPU.

Plain 3x3 convolutions whose widths fill vector registers (multiples of 16), no concatenation, no pooling: fewer
multiplications would be slower, because depthwise convolutions and reorders are bound by memory. The convolutions are
MobileOne blocks (arXiv 2206.04040, section 3.2), which fuse into one kernel each.
"""

from functools import partial

from torch import Tensor, nn

from pfld_edge_train.blocks import MobileOneBlock
from pfld_edge_train.models.config import ModelConfig
from pfld_edge_train.models.landmark_net import LandmarkNet

__all__ = ["PFLDEdgeM", "PFLDEdgeS"]


class _PFLDEdge(LandmarkNet):
    """A stem, three stages, a head that keeps places, one linear layer."""

    STEM: int
    """Channels of the first block, at half the input's size."""

    STAGES: tuple[tuple[int, int], ...]
    """Channels and blocks of each stage; the first block of a stage halves the map."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the network; with one convolution branch the side branches are left out too."""
        super().__init__()
        branches = config.conv_branches
        block = partial(MobileOneBlock, conv_branches=branches, side_branches=branches > 1, fused=config.fused)
        channels = config.scaled(self.STEM)
        blocks = [block(3, channels, 3, 2)]
        for width, depth in self.STAGES:
            for i in range(depth):
                blocks.append(block(channels, config.scaled(width), 3, 2 if i == 0 else 1))
                channels = config.scaled(width)
        self.blocks = nn.Sequential(*blocks)
        self.feature_channels = config.scaled(self.STAGES[0][0])
        # Sixteen channels that keep their place on the map: the linear layer must know where, not only what.
        self.head = block(channels, 16, 1)
        self.fc = nn.Linear(16 * (config.input_size // 16) ** 2, 2 * config.num_landmarks)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.constant_(self.fc.bias, 0.5)  # every landmark starts at the crop's centre

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and the first stage's map."""
        features = x
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place == self.STAGES[0][1]:  # the last of the first stage; the stem comes before it
                features = x
        return self.fc(self.head(x).flatten(1)), features


class PFLDEdgeS(_PFLDEdge):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop.

    0.6 M parameters and 41 M multiplications at 112 pixels, 98 points and a width factor of 1.
    """

    STEM = 16
    STAGES = ((32, 2), (64, 2), (128, 3))


class PFLDEdgeM(_PFLDEdge):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop.

    Wider: 1.2 M parameters and 95 M multiplications. Of the candidates with about as many (deeper ones, ones with more
    blocks on small maps) it has the most multiplications a millisecond, and it trains without side branches.
    """

    STEM = 32
    STAGES = ((48, 2), (96, 2), (192, 3))
