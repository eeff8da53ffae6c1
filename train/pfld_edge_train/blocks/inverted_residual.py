"""Inverted residual with linear bottleneck (Sandler et al., "MobileNetV2", arXiv 1801.04381, section 3.3)."""

from torch import Tensor, nn

from pfld_edge_train.blocks.conv_block import conv_block

__all__ = ["InvertedResidual"]


class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter by a depthwise 3x3, project by a linear 1x1; add the input where asked."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: int, *, residual: bool, fused: bool = False
    ) -> None:
        """Build the block.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            stride: 1 or 2, of the depthwise convolution.
            expansion: Hidden channels over input channels.
            residual: Add the input; needs stride 1 and equal channels.
            fused: Build the inference form.

        Raises:
            ValueError: A residual is asked for where the shapes differ.
        """
        super().__init__()
        if residual and (stride != 1 or in_channels != out_channels):
            raise ValueError("a residual needs stride 1 and as many output as input channels")
        hidden = in_channels * expansion
        self.residual = residual
        self.inv_res = nn.Sequential(
            conv_block(in_channels, hidden, 1, fused=fused),
            conv_block(hidden, hidden, 3, stride, 1, groups=hidden, fused=fused),
            conv_block(hidden, out_channels, 1, linear=True, fused=fused),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H/s, W/s)``."""
        out: Tensor = self.inv_res(x)
        return x + out if self.residual else out
