"""Kernels of all branches as one tensor, and their gradients apart again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pfld_edge_train.blocks.patch_geometry import PatchGeometry

__all__ = ["split_kernels", "stack_kernels"]


def stack_kernels(kernels: Sequence[Tensor], branches: int, geometry: PatchGeometry) -> Tensor:
    """Stack kernels of one size: a 1x1 kernel lies in the middle of zeros, a skip branch is the identity's kernel.

    Args:
        kernels: ``(out, in / groups, k, k)`` or 1x1; the first has the full size.
        branches: One more than kernels if there is a skip branch.
        geometry: Of the convolution.

    Returns:
        ``(G, B, O, d)``.
    """
    outputs, inputs = kernels[0].shape[:2]
    area, groups = geometry.kernel_size**2, geometry.groups
    stacked = kernels[0].new_zeros(branches, outputs, inputs, area)
    whole = [kernel for kernel in kernels if kernel.shape[2] == geometry.kernel_size]
    torch.stack([kernel.flatten(2) for kernel in whole], out=stacked[: len(whole)])
    for kernel, into in zip(kernels[len(whole) :], stacked[len(whole) :], strict=False):
        into[:, :, area // 2] = kernel[:, :, 0, 0]
    if branches > len(kernels):
        identity = stacked[-1].view(groups, -1, inputs, area)[..., area // 2]
        identity.diagonal(dim1=1, dim2=2).fill_(1)
    return stacked.view(branches, groups, outputs // groups, inputs * area).transpose(0, 1).contiguous()


def split_kernels(stacked: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Take gradients apart.

    Args:
        stacked: As `stack_kernels` gave it.
        shapes: Of the kernels.
    """
    found = []
    for gradient, shape in zip(stacked.unbind(dim=1), shapes, strict=False):
        outputs, inputs, side = shape[:3]
        values = gradient.reshape(outputs, inputs, -1)
        found.append(
            values.view(shape) if values.shape[2] == side**2 else values[:, :, values.shape[2] // 2, None, None]
        )
    return found
