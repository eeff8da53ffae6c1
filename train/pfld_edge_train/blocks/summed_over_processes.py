"""Sums and moments over the batches of several processes."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["moments_over_processes", "summed_over_processes"]


def summed_over_processes(values: Sequence[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """Add up tensors over the processes of a group, in one message.

    Args:
        values: Of one type, with equal shapes in all processes.
        group: The processes.
    """
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat, group=group)
    parts = torch.split(flat, [value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]


def moments_over_processes(
    mean: Tensor, covariance: Tensor, count: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, int]:
    """Join the moments of several processes' batches to those of the whole.

    In float64: what cancels in the sum of products is nothing beside its 16 digits.

    Args:
        mean: ``(G, d)`` of this process's patches.
        covariance: ``(G, d, d)``.
        count: Of them.
        group: The processes.

    Returns:
        The same of all patches.
    """
    own = mean.double()
    products = torch.baddbmm(covariance.double(), own[:, :, None], own[:, None])
    size = own.new_tensor([float(count)])
    total, products, size = summed_over_processes((own * count, products * count, size), group)
    whole = round(float(size))
    joint = total / whole
    products = torch.baddbmm(products, joint[:, :, None], joint[:, None], beta=1 / whole, alpha=-1)
    return joint.to(mean.dtype), products.to(mean.dtype), whole
