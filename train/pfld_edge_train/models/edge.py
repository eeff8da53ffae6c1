"""pfld-edge-s and pfld-edge-m, designed for the speed of onnxruntime on a CPU.

Plain 3x3 convolutions whose widths fill vector registers (multiples of 16), no concatenation, no pooling: networks
with fewer multiplications are slower, because depthwise convolutions and reorders are bound by memory. The
convolutions are MobileOne blocks (arXiv 2206.04040, section 3.2), which fuse into one kernel each. pfld-edge-m ends in
heat maps whose expectation over a softmax ("soft-argmax") is a landmark: Sun et al., "Integral Human Pose Regression",
ECCV 2018, arXiv 1711.08229, section 2.
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_train.blocks import MobileOneBlock
from pfld_edge_train.models.landmark_net import LandmarkNet, ModelConfig

STRETCH = 1.2
"""Factor to the cells' places: landmarks may lie outside of the crop, where no mean of cells inside it could."""


def cell_places(side: int) -> Tensor:
    """The places of the cells of a map, ``(side * side, 2)``, x and y as fractions of the crop."""
    line = ((torch.arange(side) + 0.5) / side - 0.5) * STRETCH + 0.5
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).view(-1, 2)


def mean_places(heat: Tensor, places: Tensor) -> Tensor:
    """Map heat maps ``(N, P, H, H)`` before their softmax, and the cells' places, to landmarks ``(N, 2 * P)``."""
    return (heat.flatten(2).softmax(dim=2) @ places).flatten(1)


class HeatMaps(nn.Module):
    """A map ``(N, C, H, H)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop.

    A 1x1 convolution (`heat`) gives a heat map for each landmark; the landmark is the mean of the cells' places
    (`grid`). Unlike a linear layer over the map, it has the same weights everywhere.
    """

    grid: Tensor

    def __init__(self, channels: int, side: int, num_landmarks: int) -> None:
        super().__init__()
        self.heat = nn.Conv2d(channels, num_landmarks, 1)
        self.register_buffer("grid", cell_places(side))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, H)`` to ``(N, 2 * num_landmarks)``."""
        device = self.grid.device.type
        if torch.is_autocast_enabled(device):
            # Eight bits of a bfloat16 are too few for the exponents of a softmax.
            with torch.autocast(device, enabled=False):
                return mean_places(self.heat(x.float()), self.grid)
        return mean_places(self.heat(x), self.grid)


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
        """Run the stages on ``(N, 3, S, S)``; give the map of each, at a 4th, 8th and 16th of the size."""
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

    Wider, and with heat maps on the second stage's map, to which the last one is added (as in feature pyramid
    networks, Lin et al., arXiv 1612.03144, section 3). 0.8 M parameters and 98 M multiplications. It trains without
    side branches.
    """

    STEM = 32
    STAGES = ((48, 2), (96, 2), (192, 2))

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        block = _block_of(config)
        middle, last = (config.scaled(width) for width, _ in self.STAGES[1:])
        self.lateral = block(last, middle, 1, linear=True)
        self.joined = block(middle, middle, 3)
        self.fc = HeatMaps(middle, config.input_size // 8, config.num_landmarks)

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and the first stage's map."""
        first, middle, last = self.maps(x)
        coarse = F.interpolate(self.lateral(last), scale_factor=2.0, mode="nearest")
        return self.fc(self.joined(middle + coarse)), first
