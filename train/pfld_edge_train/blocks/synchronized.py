"""BatchNorm's statistics: sums over several processes, and moving the running statistics.

torch's SyncBatchNorm needs a GPU; sums over processes, whose gradients are summed as well, do the same on any device.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = [
    "SynchronizedBatchNorm2d",
    "moments_over_processes",
    "move_statistics",
    "summed_over_processes",
    "synchronize_batch_norm",
]


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


class _JointMoments(torch.autograd.Function):
    """Mean and variance of each channel over all processes; their gradients come from all processes as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401 - torch's own interface
        # About the mean of its own batch each process loses no digits.
        variance, mean = (values.double()[:, None] for values in torch.var_mean(x, (0, 2, 3), correction=0))
        joint, spread, count = moments_over_processes(mean, variance[:, :, None], x.numel() // x.shape[1], group)
        ctx.save_for_backward(x, joint)
        ctx.group, ctx.count = group, count
        return joint[:, 0], spread[:, 0, 0].clamp(min=0), joint.new_tensor(float(count))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, mean: Tensor, variance: Tensor, _: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's own interface
        x, joint = ctx.saved_tensors
        mean, variance = summed_over_processes((mean, variance), ctx.group)
        linear = variance * (2 / ctx.count)
        constant = mean / ctx.count - linear * joint[:, 0]
        return constant.to(x.dtype)[:, None, None] + linear.to(x.dtype)[:, None, None] * x, None


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
        mean, variance, count = _JointMoments.apply(wide, self.process_group)  # type: ignore[no-untyped-call]
        if count == 1:
            raise ValueError(
                f"BatchNorm needs more than one value for each channel, not an input of {tuple(input.shape)}"
            )
        move_statistics([self], mean.detach()[None, None], variance.detach()[None, None], int(count))
        factor = self.weight * torch.rsqrt(variance + self.eps)
        offset = self.bias - mean * factor
        out: Tensor = wide * factor.to(wide.dtype)[:, None, None] + offset.to(wide.dtype)[:, None, None]
        return out.to(input.dtype)


def synchronize_batch_norm(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Let every BatchNorm of a network see the batches of all processes, in place.

    Weights, buffers and their names stay. Blocks that merge their branches are told the group, see
    `pfld_edge_train.blocks.MobileOneBlock`.

    Args:
        model: Any network of `pfld_edge_train.models`.
        group: The processes; None for all of them.
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
