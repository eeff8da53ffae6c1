"""GhostOne: the Ghost module built of MobileOne blocks, without shortcuts.

Ghost modules after arXiv 1911.11907 (section 3.1), blocks after arXiv 2206.04040 (section 3.2), joined as in the
public PFLD-GhostOne networks.
"""

from functools import partial

import torch
from torch import Tensor, nn

from pfld_edge_train.blocks.mobileone import MobileOneBlock

__all__ = ["GhostOneBottleneck", "GhostOneModule"]


class GhostOneModule(nn.Module):
    """Half of the channels by a 1x1 block, the other half by a depthwise 3x3 block of the first half."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        conv_branches: int,
        linear: bool = False,
        fused: bool = False,
        pointwise_scale: bool = False,
    ) -> None:
        """Build the two blocks; the options are those of `MobileOneBlock`.

        Raises:
            ValueError: The number of output channels is odd.
        """
        super().__init__()
        if out_channels % 2:
            raise ValueError(f"a GhostOne module needs an even number of output channels, not {out_channels}")
        half = out_channels // 2
        block = partial(MobileOneBlock, conv_branches=conv_branches, linear=linear, fused=fused)
        self.primary_conv = block(in_channels, half, 1, pointwise_scale=pointwise_scale)
        self.cheap_operation = block(half, half, 3, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H, W)``."""
        primary = self.primary_conv(x)
        return torch.cat([primary, self.cheap_operation(primary)], dim=1)


class GhostOneBottleneck(nn.Module):
    """GhostOne module up, linear depthwise block where the stride is 2, linear GhostOne module down."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        stride: int,
        *,
        conv_branches: int,
        fused: bool = False,
        pointwise_scale: bool = False,
    ) -> None:
        """Build the block; there is no shortcut."""
        super().__init__()
        module = partial(GhostOneModule, conv_branches=conv_branches, fused=fused, pointwise_scale=pointwise_scale)
        down: nn.Module = nn.Sequential()
        if stride == 2:
            down = MobileOneBlock(
                hidden_channels,
                hidden_channels,
                3,
                stride,
                groups=hidden_channels,
                conv_branches=conv_branches,
                linear=True,
                fused=fused,
            )
        self.ghost_conv = nn.Sequential(
            module(in_channels, hidden_channels),
            down,
            module(hidden_channels, out_channels, linear=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H/s, W/s)``."""
        out: Tensor = self.ghost_conv(x)
        return out
