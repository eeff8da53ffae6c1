"""Says which blocks are worth merging in training."""

from pfld_edge_train.blocks.patch_geometry import PatchGeometry

__all__ = ["merge_pays"]

_ROUNDS = 3
"""A convolution runs once forward and twice backward: for its weights and for its input."""


def merge_pays(in_channels: int, out_channels: int, geometry: PatchGeometry, branches: int) -> bool:
    """Say whether one convolution and the moments cost less than all branches.

    In multiply-accumulates an output place: a branch costs the output's channels times the patch's size, thrice; the
    moments cost the patch's size squared, once forward and once backward. What is saved in memory traffic, two tensors
    a branch and more in BatchNorm, only speaks for merging.

    Args:
        in_channels: Of the block.
        out_channels: Of the block.
        geometry: Of its convolutions.
        branches: Its BatchNorms.
    """
    patch = in_channels // geometry.groups * geometry.kernel_size**2
    if geometry.groups == in_channels:
        return branches > 1
    outputs = out_channels // geometry.groups
    return _ROUNDS * branches * outputs > _ROUNDS * outputs + 2 * patch
