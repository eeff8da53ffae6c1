"""The body that PFLD's relatives share: eleven bottlenecks, and a head that reads five scales at once.

After PFLD (Guo et al., arXiv 1902.10859, section 3.3: multi-scale features into one fully connected layer), laid out
as in the public PFLD-GhostNet and PFLD-GhostOne networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_train.models.landmark_net import LandmarkNet

__all__ = ["Bottleneck", "MultiScaleNet", "Widths", "all_scales"]

Bottleneck = Callable[[int, int, int, int], nn.Module]
"""Builds a bottleneck from input, hidden and output channels and stride."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Hidden and output channels of each stage, at a width factor of 1.

    Attributes:
        stage3: Hidden channels of conv3_1, then of conv3_2 and 3_3.
        stage4: Of conv4_1, then of conv4_2 and 4_3.
        stage5: Of conv5_1, then of conv5_2 to 5_4.
        conv6: Of conv6.
    """

    stage3: tuple[int, int]
    stage4: tuple[int, int]
    stage5: tuple[int, int]
    conv6: int


def all_scales(averaged: Sequence[Tensor], last: Tensor) -> Tensor:
    """Join what several scales know of a face.

    Args:
        averaged: Maps ``(N, C, H, W)``, of which the mean over the area counts.
        last: ``(N, C, 1, 1)``, what a convolution made of the whole of the smallest map.

    Returns:
        ``(N, sum of all C)``.
    """
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
        """Assemble the network from its blocks.

        Args:
            stem: conv1 (stride 2) and conv2.
            bottleneck: Builds the stages' blocks.
            conv7: 16 to 32 channels.
            conv8: 32 to 128 channels, over the whole map.
            widths: Channels of the stages.
            scaled: Applies the width factor.
            num_landmarks: Points a face.
        """
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
