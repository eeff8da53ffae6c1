"""BatchNorm over the batches of several processes, on CPUs as on GPUs.

torch's SyncBatchNorm needs CUDA. Sums that are added over processes, with gradients that are, do the same anywhere.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["SynchronizedBatchNorm2d", "summed_over_processes", "synchronize_batch_norm"]


class _Sum(torch.autograd.Function):
    """Each process's loss depends on every process's summands: gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:  # noqa: ANN401 - torch's own interface
        ctx.group = group
        summed = values.clone()
        dist.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's own interface
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


def summed_over_processes(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Add up a tensor over the processes of a group, with a gradient."""
    summed: Tensor = _Sum.apply(values, group)  # type: ignore[no-untyped-call]
    return summed


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose training statistics are those of all processes of a group.

    Attributes:
        process_group: The processes.
    """

    process_group: dist.ProcessGroup

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Map ``(N, C, H, W)`` to the same shape."""
        if not self.training:
            return super().forward(input)
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = wide.new_full((1,), wide.numel() // wide.shape[1], dtype=torch.float64)
        sums = (wide.sum(dim=(0, 2, 3)).double(), wide.square().sum(dim=(0, 2, 3)).double(), count)
        summed = summed_over_processes(torch.cat(sums), self.process_group)
        total, squares, count = torch.split(summed, [part.numel() for part in sums])
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        self._move(mean.detach(), variance.detach(), float(count))
        factor = self.weight * torch.rsqrt(variance + self.eps)
        offset = self.bias - mean * factor
        out: Tensor = wide * factor.to(wide.dtype)[:, None, None] + offset.to(wide.dtype)[:, None, None]
        return out.to(input.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, count: float) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((variance * (count / max(1.0, count - 1))).to(self.running_var.dtype), share)


def synchronize_batch_norm(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Let every BatchNorm of a network see the batches of all processes, in place.

    Weights, buffers and their names stay. Blocks that merge their branches are told the group, see
    `pfld_edge_train.blocks.MobileOneBlock`.

    Args:
        model: Any network of `pfld_edge_train.models`.
        group: The processes.
    """
    for module in model.modules():
        if hasattr(module, "statistics_group"):
            setattr(module, "statistics_group", group)  # noqa: B010 - a plain attribute, not a submodule
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronizedBatchNorm2d
            setattr(module, "process_group", group)  # noqa: B010 - as above
