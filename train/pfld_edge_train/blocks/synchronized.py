"""BatchNorm's statistics: sums over several processes, and moving the running statistics.

torch's SyncBatchNorm needs a GPU; sums over processes, whose gradients are summed as well, do the same on any device.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def summed_over_processes(values: Sequence[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """Add up tensors of one type, with equal shapes in all processes, in one message."""
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat, group=group)
    parts = torch.split(flat, [value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]


def moments_over_processes(
    mean: Tensor, covariance: Tensor, count: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, int]:
    """Join the moments of several processes' batches, in float64: mean ``(G, d)``, covariance ``(G, d, d)``, count."""
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
    """BatchNorm whose training statistics are those of all processes of `process_group`."""

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
