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
    # A few operations for all layers: there are eight in a block, and each does next to nothing.
    kept = [i for i, norm in enumerate(norms) if norm.track_running_stats]
    if not kept:
        return
    counts = [norms[i].get_buffer("num_batches_tracked") for i in kept]
    torch._foreach_add_(counts, 1)
    momenta = [norms[i].momentum for i in kept]
    shares = [1 / float(n) if momentum is None else momentum for n, momentum in zip(counts, momenta, strict=True)]
    for name, values in (("running_mean", means), ("running_var", unbiased)):
        buffers = [norms[i].get_buffer(name) for i in kept]
        targets = values.transpose(0, 1).flatten(1).to(buffers[0].dtype).unbind()
        torch._foreach_mul_(buffers, [1 - share for share in shares])
        torch._foreach_add_(buffers, list(torch._foreach_mul([targets[i] for i in kept], shares)))
