"""PFLD, PFLD-GhostNet, its slim variant and PFLD-GhostOne: bottlenecks, and a head that reads several scales at once.

After PFLD (Guo et al., arXiv 1902.10859, section 3.3: multi-scale features into one fully connected layer), with the
blocks of MobileNetV2 (arXiv 1801.04381), Ghost (arXiv 1911.11907) or MobileOne (arXiv 2206.04040), laid out as in the
public networks. Channels below are those at a width factor of 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_train.blocks import (
    Activation,
    GhostBottleneck,
    GhostOneBottleneck,
    InvertedResidual,
    MobileOneBlock,
    conv_block,
)
from pfld_edge_train.models.landmark_net import LandmarkNet, ModelConfig

Bottleneck = Callable[[int, int, int, int], nn.Module]
"""Builds a bottleneck from input, hidden and output channels and stride."""

STAGES = ((3, 80, 3), (4, 96, 3), (5, 144, 4), (6, 16, 1))
"""Number, output channels and bottlenecks of GhostNet's and GhostOne's stages; all but the last halve the map."""
GHOST_WIDTHS = ((128, 160), (240, 288), (384, 576), (288, 288))
"""Hidden channels of each stage: of its first bottleneck, then of the others."""
SLIM_WIDTHS = ((96, 120), (200, 240), (336, 504), (216, 216))


def all_scales(averaged: Sequence[Tensor], last: Tensor) -> Tensor:
    """Concatenate the means over the area of ``(N, C, H, W)`` maps and a ``(N, C, 1, 1)`` output: ``(N, all C)``."""
    return torch.cat([*(F.adaptive_avg_pool2d(x, 1).flatten(1) for x in averaged), last.flatten(1)], dim=1)


@dataclass(frozen=True, slots=True)
class PFLDLayout:
    """What the public PFLD projects do differently; the defaults are AnthonyF333's.

    Attributes:
        conv2: ``depthwise`` 3x3, ``full`` 3x3, ``separable`` (depthwise, then 1x1), or ``bare``: separable, without
            the first activation and the second BatchNorm.
        expansion: Of the bottlenecks; conv5 has twice that.
        linear_expansion: No activation follows a bottleneck's first 1x1.
        residual5: conv5_1 has a shortcut.
        conv8_bias: conv8 has a bias.
        flat: The last layer reads whole maps, not their means.
    """

    conv2: str = "depthwise"
    expansion: int = 2
    linear_expansion: bool = False
    residual5: bool = False
    conv8_bias: bool = False
    flat: bool = False
    activation: Activation = nn.ReLU


class PFLD(LandmarkNet):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop.

    The paper's backbone as the public PFLD networks lay it out.
    """

    layout = PFLDLayout()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c3, c5, c6, c7, c8 = map(config.scaled, (64, 128, 16, 32, 128))
        layout, narrow, wide = self.layout, self.layout.expansion, 2 * self.layout.expansion
        block = partial(conv_block, activation=layout.activation, fused=config.fused)
        residual = partial(
            InvertedResidual, linear_expansion=layout.linear_expansion, activation=layout.activation, fused=config.fused
        )
        bare = layout.conv2 == "bare"
        self.conv1 = block(3, c3, 3, 2, 1)
        self.conv2 = block(c3, c3, 3, 1, 1, groups=1 if layout.conv2 == "full" else c3, linear=bare)
        self.early = ["conv1", "conv2"]
        if layout.conv2 in ("separable", "bare"):
            self.conv2_1 = block(c3, c3, 1, batch_norm=not bare)
            self.early.append("conv2_1")
        self.conv3_1 = residual(c3, c3, 2, narrow, residual=False)
        for i in range(2, 6):
            self.add_module(f"conv3_{i}", residual(c3, c3, 1, narrow, residual=True))
        self.conv4 = residual(c3, c5, 2, narrow, residual=False)
        for i in range(1, 7):
            self.add_module(f"conv5_{i}", residual(c5, c5, 1, wide, residual=i > 1 or layout.residual5))
        self.conv6 = residual(c5, c6, 1, narrow, residual=False)
        self.conv7 = block(c6, c7, 3, 2, 1)
        side = config.input_size // 16
        self.conv8 = conv_block(c7, c8, side, batch_norm=False, bias=layout.conv8_bias, activation=layout.activation)
        self.feature_channels = c3
        features = 4 * side**2 * c6 + side**2 * c7 + c8 if layout.flat else c6 + c7 + c8
        self.fc = nn.Linear(features, 2 * config.num_landmarks)

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and conv3_5's map."""
        early = self.run(x, *self.early, *(f"conv3_{i}" for i in range(1, 6)))
        scale1 = self.run(early, "conv4", *(f"conv5_{i}" for i in range(1, 7)), "conv6")
        scale2 = self.conv7(scale1)
        scale3 = self.conv8(scale2)
        if self.layout.flat:
            return self.fc(torch.cat([x.flatten(1) for x in (scale1, scale2, scale3)], dim=1)), early
        return self.fc(all_scales([scale1, scale2], scale3)), early


class PFLDPolarisZhao(PFLD):
    """The network of polarisZhao/PFLD-pytorch and its forks."""

    layout = PFLDLayout(conv2="full", conv8_bias=True)


class PFLDAmrElsersy(PFLD):
    """The network of AmrElsersy/PFLD-Pytorch-Landmarks."""

    layout = PFLDLayout(conv2="separable")


class PFLDCunjian(PFLD):
    """The network of cunjian/pytorch_face_landmark: half of the others' expansion."""

    layout = PFLDLayout(conv2="bare", expansion=1, conv8_bias=True)


class PFLDLuffy(PFLD):
    """The network of github-luffy/PFLD_68points_Pytorch: ReLU6, and a last layer over whole maps."""

    layout = PFLDLayout(linear_expansion=True, residual5=True, conv8_bias=True, flat=True, activation=nn.ReLU6)


class MultiScaleNet(LandmarkNet):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop.

    Stem (conv1, conv2), eleven bottlenecks, conv7, conv8 over the whole map, one linear layer.
    """

    def __init__(
        self,
        config: ModelConfig,
        scaled: Callable[[int], int],
        stem: tuple[nn.Module, nn.Module],
        bottleneck: Bottleneck,
        conv7: nn.Module,
        widths: tuple[tuple[int, int], ...],
    ) -> None:
        super().__init__()
        conv8 = conv_block(scaled(32), scaled(128), config.input_size // 16, batch_norm=False)
        self.conv1, self.conv2 = stem
        channels = scaled(64)
        for (stage, out, depth), hidden in zip(STAGES, widths, strict=True):
            for i in range(depth):
                stride = 2 if i == 0 and stage < 6 else 1
                name = f"conv{stage}_{i + 1}" if depth > 1 else f"conv{stage}"
                self.add_module(name, bottleneck(channels, scaled(hidden[min(i, 1)]), scaled(out), stride))
                channels = scaled(out)
        self.conv7, self.conv8 = conv7, conv8
        self.feature_channels = scaled(80)
        self.fc = nn.Linear(sum(map(scaled, (64, 80, 96, 144, 128))), 2 * config.num_landmarks)

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and conv3_3's map."""
        scales = [self.conv2(self.conv1(x))]
        for stage, _, depth in STAGES[:3]:
            scales.append(self.run(scales[-1], *(f"conv{stage}_{i + 1}" for i in range(depth))))
        last = self.run(scales[-1], "conv6", "conv7", "conv8")
        return self.fc(all_scales(scales, last)), scales[1]


class PFLDGhostNet(MultiScaleNet):
    """0.804 M parameters at 112 pixels and 98 points."""

    widths = GHOST_WIDTHS

    def __init__(self, config: ModelConfig) -> None:
        c1, c6, c7 = map(config.scaled, (64, 16, 32))
        block = partial(conv_block, fused=config.fused)
        stem = block(3, c1, 3, 2, 1), block(c1, c1, 3, 1, 1, groups=c1)
        bottleneck = partial(GhostBottleneck, fused=config.fused)
        super().__init__(config, config.scaled, stem, bottleneck, block(c6, c7, 3, 1, 1), self.widths)


class PFLDGhostNetSlim(PFLDGhostNet):
    """0.736 M parameters: narrower hidden layers."""

    widths = SLIM_WIDTHS


class PFLDGhostOne(MultiScaleNet):
    """0.703 M parameters at inference, at 112 pixels and 98 points."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the network; channels are rounded down to even numbers, which GhostOne modules need."""

        def scaled(channels: int) -> int:
            return max(2, config.scaled(channels) // 2 * 2)

        c1, c6, c7 = map(scaled, (64, 16, 32))
        branches, fused, scale = config.conv_branches, config.fused, config.pointwise_scale
        block = partial(MobileOneBlock, conv_branches=branches, fused=fused)
        stem = block(3, c1, 3, 2), block(c1, c1, 3, groups=c1)
        bottleneck = partial(GhostOneBottleneck, conv_branches=branches, fused=fused, pointwise_scale=scale)
        super().__init__(config, scaled, stem, bottleneck, block(c6, c7, 3), SLIM_WIDTHS)
