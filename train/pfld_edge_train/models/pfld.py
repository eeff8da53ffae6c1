"""PFLD (Guo et al., arXiv 1902.10859, section 3.3): MobileNetV2 blocks and a head that reads three scales at once."""

from functools import partial

from torch import Tensor, nn

from pfld_edge_train.blocks import InvertedResidual, conv_block
from pfld_edge_train.models.landmark_net import LandmarkNet, ModelConfig
from pfld_edge_train.models.multi_scale import all_scales


class PFLD(LandmarkNet):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * num_landmarks)``, fractions of the crop.

    The paper's backbone as the public PFLD networks lay it out: conv2 is depthwise.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build the network."""
        super().__init__()
        c3, c5, c6, c7, c8 = map(config.scaled, (64, 128, 16, 32, 128))
        block = partial(conv_block, fused=config.fused)
        residual = partial(InvertedResidual, fused=config.fused)
        self.conv1 = block(3, c3, 3, 2, 1)
        self.conv2 = block(c3, c3, 3, 1, 1, groups=c3)
        self.conv3_1 = residual(c3, c3, 2, 2, residual=False)
        for i in range(2, 6):
            self.add_module(f"conv3_{i}", residual(c3, c3, 1, 2, residual=True))
        self.conv4 = residual(c3, c5, 2, 2, residual=False)
        self.conv5_1 = residual(c5, c5, 1, 4, residual=False)
        for i in range(2, 7):
            self.add_module(f"conv5_{i}", residual(c5, c5, 1, 4, residual=True))
        self.conv6 = residual(c5, c6, 1, 2, residual=False)
        self.conv7 = block(c6, c7, 3, 2, 1)
        self.conv8 = conv_block(c7, c8, config.input_size // 16, batch_norm=False)
        self.feature_channels = c3
        self.fc = nn.Linear(c6 + c7 + c8, 2 * config.num_landmarks)
        self._early = ["conv1", "conv2", *(f"conv3_{i}" for i in range(1, 6))]
        self._late = ["conv4", *(f"conv5_{i}" for i in range(1, 7)), "conv6"]

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks and conv3_5's map."""
        for name in self._early:
            x = self.get_submodule(name)(x)
        early = x
        for name in self._late:
            x = self.get_submodule(name)(x)
        scale2 = self.conv7(x)
        return self.fc(all_scales([x, scale2], self.conv8(scale2))), early
