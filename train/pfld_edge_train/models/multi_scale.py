"""PFLD-GhostNet, its slim variant and PFLD-GhostOne: eleven bottlenecks, and a head that reads five scales at once.

After PFLD (Guo et al., arXiv 1902.10859, section 3.3: multi-scale features into one fully connected layer), Ghost
(arXiv 1911.11907) and MobileOne blocks (arXiv 2206.04040), laid out as in the public networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_train.blocks import GhostBottleneck, GhostOneBottleneck, MobileOneBlock, conv_block
from pfld_edge_train.models.landmark_net import LandmarkNet, ModelConfig

Bottleneck = Callable[[int, int, int, int], nn.Module]
"""Builds a bottleneck from input, hidden and output channels and stride."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Hidden and output channels of each stage at a width factor of 1: of its first block, then of the others."""

    stage3: tuple[int, int]
    stage4: tuple[int, int]
    stage5: tuple[int, int]
    conv6: int


def all_scales(averaged: Sequence[Tensor], last: Tensor) -> Tensor:
    """Concatenate the means over the area of ``(N, C, H, W)`` maps and a ``(N, C, 1, 1)`` output: ``(N, all C)``."""
    return torch.cat([*(F.adaptive_avg_pool2d(x, 1).flatten(1) for x in averaged), last.flatten(1)], dim=1)


class MultiScaleNet(LandmarkNet):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop."""

    def __init__(
        self,
        stem: tuple[nn.Module, nn.Module],
        bottleneck: Bottleneck,
        conv7: nn.Module,
        conv8: nn.Module,
        widths: Widths,
        scaled: Callable[[int], int],
        num_landmarks: int,
    ) -> None:
        """Assemble the network: stem (conv1, conv2), bottlenecks, conv7, conv8 over the whole map, one linear layer."""
        super().__init__()
        self.conv1, self.conv2 = stem
        self.feature_channels = scaled(80)
        first3, other3 = map(scaled, widths.stage3)
        first4, other4 = map(scaled, widths.stage4)
        first5, other5 = map(scaled, widths.stage5)
        c2, c3, c4, c5, c6 = map(scaled, (64, 80, 96, 144, 16))
        self.conv3_1 = bottleneck(c2, first3, c3, 2)
        self.conv3_2 = bottleneck(c3, other3, c3, 1)
        self.conv3_3 = bottleneck(c3, other3, c3, 1)
        self.conv4_1 = bottleneck(c3, first4, c4, 2)
        self.conv4_2 = bottleneck(c4, other4, c4, 1)
        self.conv4_3 = bottleneck(c4, other4, c4, 1)
        self.conv5_1 = bottleneck(c4, first5, c5, 2)
        self.conv5_2 = bottleneck(c5, other5, c5, 1)
        self.conv5_3 = bottleneck(c5, other5, c5, 1)
        self.conv5_4 = bottleneck(c5, other5, c5, 1)
        self.conv6 = bottleneck(c5, scaled(widths.conv6), c6, 1)
        self.conv7, self.conv8 = conv7, conv8
        self.fc = nn.Linear(c2 + c3 + c4 + c5 + scaled(128), 2 * num_landmarks)

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and conv3_3's map."""
        scale1 = self.conv2(self.conv1(x))
        scale2 = self.conv3_3(self.conv3_2(self.conv3_1(scale1)))
        scale3 = self.conv4_3(self.conv4_2(self.conv4_1(scale2)))
        scale4 = self.conv5_4(self.conv5_3(self.conv5_2(self.conv5_1(scale3))))
        scale5 = self.conv8(self.conv7(self.conv6(scale4)))
        return self.fc(all_scales([scale1, scale2, scale3, scale4], scale5)), scale2


class PFLDGhostNet(MultiScaleNet):
    """0.804 M parameters at 112 pixels, 98 points and a width factor of 1."""

    widths = Widths(stage3=(128, 160), stage4=(240, 288), stage5=(384, 576), conv6=288)

    def __init__(self, config: ModelConfig) -> None:
        """Build the network."""
        c1, c6, c7, c8 = map(config.scaled, (64, 16, 32, 128))
        block = partial(conv_block, fused=config.fused)
        super().__init__(
            stem=(block(3, c1, 3, 2, 1), block(c1, c1, 3, 1, 1, groups=c1)),
            bottleneck=partial(GhostBottleneck, fused=config.fused),
            conv7=block(c6, c7, 3, 1, 1),
            conv8=conv_block(c7, c8, config.input_size // 16, batch_norm=False),
            widths=self.widths,
            scaled=config.scaled,
            num_landmarks=config.num_landmarks,
        )


class PFLDGhostNetSlim(PFLDGhostNet):
    """0.736 M parameters: narrower hidden layers."""

    widths = Widths(stage3=(96, 120), stage4=(200, 240), stage5=(336, 504), conv6=216)


class PFLDGhostOne(MultiScaleNet):
    """0.703 M parameters at inference, at 112 pixels, 98 points and a width factor of 1."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the network; channels are rounded down to even numbers, which GhostOne modules need."""
        branches, fused = config.conv_branches, config.fused
        block = partial(MobileOneBlock, conv_branches=branches, fused=fused)

        def scaled(channels: int) -> int:
            return max(2, config.scaled(channels) // 2 * 2)

        c1, c6, c7, c8 = map(scaled, (64, 16, 32, 128))

        bottleneck = partial(
            GhostOneBottleneck, conv_branches=branches, fused=fused, pointwise_scale=config.pointwise_scale
        )
        super().__init__(
            stem=(block(3, c1, 3, 2), block(c1, c1, 3, groups=c1)),
            bottleneck=bottleneck,
            conv7=block(c6, c7, 3),
            conv8=conv_block(c7, c8, config.input_size // 16, batch_norm=False),
            widths=Widths(stage3=(96, 120), stage4=(200, 240), stage5=(336, 504), conv6=216),
            scaled=scaled,
            num_landmarks=config.num_landmarks,
        )
