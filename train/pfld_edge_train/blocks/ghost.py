"""Ghost module and bottleneck (Han et al., "GhostNet", arXiv 1911.11907, sections 3.1 and 3.2)."""

from functools import partial

import torch
from torch import Tensor, nn

from pfld_edge_train.blocks.conv_block import conv_block

__all__ = ["GhostBottleneck", "GhostModule"]


class GhostModule(nn.Module):
    """Half of the channels by a 1x1 convolution, the other half "ghosts" by a depthwise 3x3 of the first half."""

    def __init__(self, in_channels: int, out_channels: int, *, linear: bool = False, fused: bool = False) -> None:
        """Build the two convolutions; with an odd number of output channels the last ghost is dropped."""
        super().__init__()
        half = -(-out_channels // 2)
        self.out_channels = out_channels
        self.primary_conv = conv_block(in_channels, half, 1, linear=linear, fused=fused)
        self.cheap_operation = conv_block(half, half, 3, 1, 1, groups=half, linear=linear, fused=fused)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H, W)``."""
        primary = self.primary_conv(x)
        return torch.cat([primary, self.cheap_operation(primary)], dim=1)[:, : self.out_channels]


class GhostBottleneck(nn.Module):
    """Ghost module up, depthwise 3x3 where the stride is 2, linear Ghost module down, and a shortcut (figure 3)."""

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, stride: int, *, fused: bool = False
    ) -> None:
        """Build the block; the shortcut is the identity where the shapes allow it, else depthwise and 1x1."""
        super().__init__()
        linear = partial(conv_block, linear=True, fused=fused)
        down = linear(hidden_channels, hidden_channels, 3, stride, 1, groups=hidden_channels)
        self.ghost_conv = nn.Sequential(
            GhostModule(in_channels, hidden_channels, fused=fused),
            down if stride == 2 else nn.Sequential(),
            GhostModule(hidden_channels, out_channels, linear=True, fused=fused),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                linear(in_channels, in_channels, 3, stride, 1, groups=in_channels),
                linear(in_channels, out_channels, 1),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H/s, W/s)``."""
        out: Tensor = self.ghost_conv(x) + self.shortcut(x)
        return out
