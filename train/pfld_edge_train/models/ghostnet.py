"""PFLD-GhostNet and its slim variant: PFLD's multi-scale body of Ghost bottlenecks (arXiv 1902.10859, 1911.11907)."""

from functools import partial

from pfld_edge_train.blocks import GhostBottleneck, conv_block
from pfld_edge_train.models.config import ModelConfig
from pfld_edge_train.models.multi_scale import MultiScaleNet, Widths

__all__ = ["PFLDGhostNet", "PFLDGhostNetSlim"]


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
