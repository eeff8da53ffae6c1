"""BatchNorm over the batches of several processes, on CPUs as on GPUs.

torch's SyncBatchNorm needs a GPU. Sums that are added over processes, with gradients that are, do the same anywhere.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pfld_edge_train.blocks.running_statistics import move_statistics
from pfld_edge_train.blocks.summed_over_processes import moments_over_processes, summed_over_processes

__all__ = ["SynchronizedBatchNorm2d", "synchronize_batch_norm"]


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
