"""BatchNorm's running statistics, moved by statistics that were computed elsewhere."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["move_statistics"]


@torch.no_grad()
def move_statistics(norms: Sequence[nn.BatchNorm2d], means: Tensor, variances: Tensor, count: int) -> None:
    """Do to the running statistics what BatchNorm does.

    Args:
        norms: Their buffers are changed, if they keep any.
        means: ``(G, B, O)``, of B layers with G x O channels.
        variances: Likewise, divided by the count; the running ones are the unbiased estimates.
        count: Values of each channel.
    """
    unbiased = variances * (count / max(1, count - 1))
    for i, norm in enumerate(norms):
        if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
            continue
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(means[:, i].flatten().to(norm.running_mean.dtype), share)
        norm.running_var.lerp_(unbiased[:, i].flatten().to(norm.running_var.dtype), share)
