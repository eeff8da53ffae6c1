"""Convolution, BatchNorm, ReLU."""

from torch import nn

__all__ = ["conv_block"]


def conv_block(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    *,
    groups: int = 1,
    batch_norm: bool = True,
    linear: bool = False,
    fused: bool = False,
) -> nn.Sequential:
    """Build ``(N, in, H, W)`` to ``(N, out, H', W')``.

    Children are ``0`` (convolution without bias), ``1`` (BatchNorm) and ``2`` (ReLU), an empty `Sequential` where a
    part is left out: the parameter names of the public PFLD checkpoints depend on these places.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel.
        stride: Step of the kernel.
        padding: Zeros around the input.
        groups: ``in_channels`` for a depthwise convolution.
        batch_norm: Whether BatchNorm follows.
        linear: Leave out the ReLU.
        fused: Build the inference form, with BatchNorm folded into the convolution's bias.
    """
    bias = fused and batch_norm
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias),
        nn.BatchNorm2d(out_channels) if batch_norm and not fused else nn.Sequential(),
        nn.Sequential() if linear else nn.ReLU(inplace=True),
    )
