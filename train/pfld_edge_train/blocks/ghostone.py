"""GhostOne: the Ghost module built of MobileOne blocks, without shortcuts.

Ghost modules after arXiv 1911.11907 (section 3.1), blocks after arXiv 2206.04040 (section 3.2), joined as in the
public PFLD-GhostOne networks.
"""

import torch
from torch import Tensor, nn

from pfld_edge_train.blocks.mobileone import MobileOneBlock

__all__ = ["GhostOneBottleneck", "GhostOneModule"]


class GhostOneModule(nn.Module):
    """Half of the channels by a 1x1 block, the other half by a depthwise 3x3 block of the first half."""

    def __init__(
        self, in_channels: int, out_channels: int, *, conv_branches: int, linear: bool = False, fused: bool = False
    ) -> None:
        """Build the two blocks.

        Raises:
            ValueError: The number of output channels is odd.
        """
        super().__init__()
        if out_channels % 2:
            raise ValueError(f"a GhostOne module needs an even number of output channels, not {out_channels}")
        half = out_channels // 2
        self.primary_conv = MobileOneBlock(
            in_channels, half, 1, conv_branches=conv_branches, linear=linear, fused=fused
        )
        self.cheap_operation = MobileOneBlock(
            half, half, 3, groups=half, conv_branches=conv_branches, linear=linear, fused=fused
        )

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
    ) -> None:
        """Build the block; there is no shortcut."""
        super().__init__()
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
            GhostOneModule(in_channels, hidden_channels, conv_branches=conv_branches, fused=fused),
            down,
            GhostOneModule(hidden_channels, out_channels, conv_branches=conv_branches, linear=True, fused=fused),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H/s, W/s)``."""
        out: Tensor = self.ghost_conv(x)
        return out
