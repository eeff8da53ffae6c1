"""Depthwise separable convolution (Howard et al., "MobileNets", arXiv 1704.04861, section 3.1)."""

from torch import Tensor, nn

from pfld_edge_train.blocks.conv_block import conv_block

__all__ = ["DepthwiseSeparableConv"]


class DepthwiseSeparableConv(nn.Module):
    """A 3x3 convolution a channel, then a 1x1 convolution across channels: ``(N, in, H, W)`` to ``(N, out, H/s, W/s)``.

    Costs ``1 / out + 1 / 9`` of a full 3x3 convolution (equation 5 of the paper).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        """Build the two convolutions, each with BatchNorm and ReLU."""
        super().__init__()
        self.depthwise = conv_block(in_channels, in_channels, 3, stride, 1, groups=in_channels)
        self.pointwise = conv_block(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H/s, W/s)``."""
        out: Tensor = self.pointwise(self.depthwise(x))
        return out
