"""pfld-edge-s and pfld-edge-m: our own networks, shaped by what onnxruntime runs fast on a CPU.

Plain 3x3 convolutions whose widths fill vector registers (multiples of 16), no concatenation, no pooling: fewer
multiplications would be slower, because depthwise convolutions and reorders are bound by memory. The convolutions are
MobileOne blocks (arXiv 2206.04040, section 3.2), which fuse into one kernel each.
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_train.blocks import MobileOneBlock
from pfld_edge_train.models.config import ModelConfig
from pfld_edge_train.models.heat_maps import HeatMaps
from pfld_edge_train.models.landmark_net import LandmarkNet

__all__ = ["PFLDEdgeM", "PFLDEdgeS"]


def _block_of(config: ModelConfig) -> Callable[..., MobileOneBlock]:
    """Give the networks' block; with one convolution branch the side branches are left out too."""
    branches = config.conv_branches
    return partial(MobileOneBlock, conv_branches=branches, side_branches=branches > 1, fused=config.fused)


class _PFLDEdge(LandmarkNet):
    """A stem and three stages."""

    STEM: int
    """Channels of the first block, at half the input's size."""

    STAGES: tuple[tuple[int, int], ...]
    """Channels and blocks of each stage; the first block of a stage halves the map."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the stages."""
        super().__init__()
        block = _block_of(config)
        channels = config.scaled(self.STEM)
        blocks = [block(3, channels, 3, 2)]
        for width, depth in self.STAGES:
            for i in range(depth):
                blocks.append(block(channels, config.scaled(width), 3, 2 if i == 0 else 1))
                channels = config.scaled(width)
        self.blocks = nn.Sequential(*blocks)
        self.feature_channels = config.scaled(self.STAGES[0][0])

    def maps(self, x: Tensor) -> list[Tensor]:
        """Run the stages on ``(N, 3, S, S)``; give each one's map, at a 4th, 8th and 16th of the size."""
        ends = list(accumulate(depth for _, depth in self.STAGES))
        maps = []
        for place, block in enumerate(self.blocks):  # the stem comes before the first stage
            x = block(x)
            if place in ends:
                maps.append(x)
        return maps


class PFLDEdgeS(_PFLDEdge):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop.

    0.6 M parameters and 41 M multiplications at 112 pixels, 98 points and a width factor of 1.
    """

    STEM = 16
    STAGES = ((32, 2), (64, 2), (128, 3))

    def __init__(self, config: ModelConfig) -> None:
        """Add a head that keeps places, and one linear layer."""
        super().__init__(config)
        # Sixteen channels that keep their place on the map: the linear layer must know where, not only what.
        self.head = _block_of(config)(config.scaled(self.STAGES[-1][0]), 16, 1)
        self.fc = nn.Linear(16 * (config.input_size // 16) ** 2, 2 * config.num_landmarks)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.constant_(self.fc.bias, 0.5)  # every landmark starts at the crop's centre

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and the first stage's map."""
        first, _, last = self.maps(x)
        return self.fc(self.head(last).flatten(1)), first


class PFLDEdgeM(_PFLDEdge):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop.

    Wider, and with heat maps on the second stage's map, which is told what the last one knows (as in feature pyramid
    networks, Lin et al., arXiv 1612.03144, section 3). 0.8 M parameters and 98 M multiplications. It trains without
    side branches.
    """

    STEM = 32
    STAGES = ((48, 2), (96, 2), (192, 2))

    def __init__(self, config: ModelConfig) -> None:
        """Add the way back up, and the heat maps."""
        super().__init__(config)
        block = _block_of(config)
        middle, last = (config.scaled(width) for width, _ in self.STAGES[1:])
        self.lateral = block(last, middle, 1, linear=True)
        self.joined = block(middle, middle, 3)
        self.fc = HeatMaps(middle, config.input_size // 8, config.num_landmarks)

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and the first stage's map."""
        first, middle, last = self.maps(x)
        told = F.interpolate(self.lateral(last), scale_factor=2.0, mode="nearest")
        return self.fc(self.joined(middle + told)), first
