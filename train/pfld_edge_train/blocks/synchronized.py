"""BatchNorm's statistics: sums over several processes, and moving the running statistics.

torch's SyncBatchNorm needs a GPU; sums over processes, whose gradients are summed as well, do the same on any device.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _SumOverProcesses(torch.autograd.Function):
    """Add up a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup) -> Tensor:  # noqa: ANN401 - torch's own interface
        ctx.group, total = group, own.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's own interface
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def moments_over_processes(
    mean: Tensor, covariance: Tensor, count: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, int]:
    """Join the moments of several processes' batches, in float64: mean ``(G, d)``, covariance ``(G, d, d)``, count."""
    own = mean.double()
    products = covariance.double() + own[:, :, None] * own[:, None]
    flat = torch.cat([(own * count).flatten(), (products * count).flatten(), own.new_tensor([float(count)])])
    total: Tensor = _SumOverProcesses.apply(flat, group)  # type: ignore[no-untyped-call]
    whole = round(float(total[-1].detach()))
    joint = total[: own.numel()].view(own.shape) / whole
    products = total[own.numel() : -1].view(covariance.shape) / whole - joint[:, :, None] * joint[:, None]
    return joint.to(mean.dtype), products.to(mean.dtype), whole


@torch.no_grad()
def move_statistics(norms: Sequence[nn.BatchNorm2d], means: Tensor, variances: Tensor, count: int) -> None:
    """Update the running statistics of B layers, where they have any, as BatchNorm does.

    Means and variances (divided by the `count` of each channel's values; the running ones are the unbiased estimates)
    are ``(G, B, O)``, of B layers with G x O channels.
    """
    unbiased = variances * (count / max(1, count - 1))
    for i, norm in enumerate(norms):
        if not norm.track_running_stats:
            continue
        batches = norm.get_buffer("num_batches_tracked").add_(1)
        share = 1 / float(batches) if norm.momentum is None else norm.momentum
        for name, values in (("running_mean", means), ("running_var", unbiased)):
            buffer = norm.get_buffer(name)
            buffer.lerp_(values[:, i].flatten().to(buffer.dtype), share)


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose training statistics are those of all processes of `process_group`."""

    process_group: dist.ProcessGroup

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Map ``(N, C, H, W)`` to the same shape."""
        if not self.training:
            return super().forward(input)
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        # About the mean of its own batch each process loses no digits.
        own, mean = (values.double()[:, None] for values in torch.var_mean(wide, (0, 2, 3), correction=0))
        count = wide.numel() // wide.shape[1]
        mean, covariance, count = moments_over_processes(mean, own[:, :, None], count, self.process_group)
        mean, variance = mean[:, 0], covariance[:, 0, 0].clamp(min=0)
        if count == 1:
            raise ValueError(
                f"BatchNorm needs more than one value for each channel, not an input of {tuple(input.shape)}"
            )
        move_statistics([self], mean.detach()[None, None], variance.detach()[None, None], count)
        factor = self.weight * torch.rsqrt(variance + self.eps)
        offset = self.bias - mean * factor
        out: Tensor = wide * factor.to(wide.dtype)[:, None, None] + offset.to(wide.dtype)[:, None, None]
        return out.to(input.dtype)


def synchronize_batch_norm(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Let every BatchNorm of a network see the batches of all processes (None: of all there are), in place.

    Weights, buffers and their names stay. `MobileOneBlock` gets the group for its merged branches.
    """
    group = group or dist.group.WORLD
    if group is None:
        raise RuntimeError("there is no group of processes: call torch.distributed.init_process_group first")
    for module in model.modules():
        if hasattr(module, "statistics_group"):
            setattr(module, "statistics_group", group)  # noqa: B010 - a plain attribute, not a submodule
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronizedBatchNorm2d
            setattr(module, "process_group", group)  # noqa: B010 - as above
