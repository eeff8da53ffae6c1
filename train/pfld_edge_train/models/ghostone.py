"""PFLD-GhostOne: PFLD's multi-scale body of GhostOne bottlenecks (arXiv 1902.10859, 1911.11907, 2206.04040)."""

from functools import partial

from pfld_edge_train.blocks import GhostOneBottleneck, MobileOneBlock, conv_block
from pfld_edge_train.models.config import ModelConfig
from pfld_edge_train.models.multi_scale import MultiScaleNet, Widths

__all__ = ["PFLDGhostOne"]


class PFLDGhostOne(MultiScaleNet):
    """0.703 M parameters at inference, at 112 pixels, 98 points and a width factor of 1."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the network; channels are rounded down to even numbers, which GhostOne modules need."""
        branches, fused = config.conv_branches, config.fused
        block = partial(MobileOneBlock, conv_branches=branches, fused=fused)

        def scaled(channels: int) -> int:
            return max(2, config.scaled(channels) // 2 * 2)

        c1, c6, c7, c8 = map(scaled, (64, 16, 32, 128))

        def bottleneck(in_channels: int, hidden: int, out_channels: int, stride: int) -> GhostOneBottleneck:
            return GhostOneBottleneck(
                in_channels,
                hidden,
                out_channels,
                stride,
                conv_branches=branches,
                fused=fused,
                pointwise_scale=config.pointwise_scale,
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
