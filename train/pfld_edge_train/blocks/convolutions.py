"""Blocks of plain convolutions: convolution with BatchNorm, inverted residual, Ghost."""

from functools import partial

import torch
from torch import Tensor, nn

Activation = type[nn.ReLU] | type[nn.ReLU6]


def conv_block(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    *,
    groups: int = 1,
    batch_norm: bool = True,
    bias: bool = False,
    linear: bool = False,
    activation: Activation = nn.ReLU,
    fused: bool = False,
) -> nn.Sequential:
    """Build ``(N, in, H, W)`` to ``(N, out, H', W')``; `groups` is `in_channels` for a depthwise convolution.

    Children are ``0`` (convolution), ``1`` (BatchNorm) and ``2`` (`activation`, not where `linear`), an empty
    `Sequential` where a part is left out: the parameter names of the public PFLD checkpoints depend on these places.
    `fused` builds the inference form, with BatchNorm folded into the convolution's bias.
    """
    bias = bias or (fused and batch_norm)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias),
        nn.BatchNorm2d(out_channels) if batch_norm and not fused else nn.Sequential(),
        nn.Sequential() if linear else activation(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter by a depthwise 3x3, project by a linear 1x1; add the input where asked.

    After Sandler et al., "MobileNetV2", arXiv 1801.04381, section 3.3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expansion: int,
        *,
        residual: bool,
        linear_expansion: bool = False,
        activation: Activation = nn.ReLU,
        fused: bool = False,
    ) -> None:
        """Build the block; `expansion` is hidden channels over input channels, `fused` the inference form.

        With `linear_expansion` no activation follows the first 1x1.

        Raises:
            ValueError: A residual is asked for where the shapes differ.
        """
        super().__init__()
        if residual and (stride != 1 or in_channels != out_channels):
            raise ValueError("a residual needs stride 1 and as many output as input channels")
        hidden = in_channels * expansion
        self.residual = residual
        self.inv_res = nn.Sequential(
            conv_block(in_channels, hidden, 1, linear=linear_expansion, activation=activation, fused=fused),
            conv_block(hidden, hidden, 3, stride, 1, groups=hidden, activation=activation, fused=fused),
            conv_block(hidden, out_channels, 1, linear=True, fused=fused),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H/s, W/s)``."""
        out: Tensor = self.inv_res(x)
        return x + out if self.residual else out


class GhostModule(nn.Module):
    """Half of the channels by a 1x1 convolution, the other half "ghosts" by a depthwise 3x3 of the first half.

    After Han et al., "GhostNet", arXiv 1911.11907, section 3.1.
    """

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
                linear(in_channels, in_channels, 3, stride, 1, groups=in_channels), linear(in_channels, out_channels, 1)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, H/s, W/s)``."""
        out: Tensor = self.ghost_conv(x) + self.shortcut(x)
        return out
