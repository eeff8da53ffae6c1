"""The small matrices of a merged block: from kernels, BatchNorms and moments to one kernel and one bias, and back.

The backward pass is written down, not recorded: these matrices are small, and what costs is the number of operations.
Shapes: G groups, B branches, O outputs of a group, d = (inputs of a group) x k x k.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BranchAlgebra", "BranchGradients"]

_LEAST_CERTAIN = 1e-3
"""Least variance of a branch, as a share of the mean square that its kernel sees, that float32 moments still tell."""


@dataclass(frozen=True, slots=True)
class BranchGradients:
    """What the gradients of the merged kernel and bias give.

    Attributes:
        kernels: ``(G, B, O, d)``.
        gamma: ``(G, B, O)``.
        mean: ``(G, d)``.
        covariance: ``(G, d, d)``, symmetric.
    """

    kernels: Tensor
    gamma: Tensor
    mean: Tensor
    covariance: Tensor


class BranchAlgebra:
    """Branch b normalizes ``W_b p``; with ``f_b = gamma_b / sigma_b`` the sum is ``W p + bias``, ``W = sum f_b W_b``.

    Attributes:
        means: Of the branches' outputs, ``(G, B, O)``.
        variances: Likewise, divided by the count.
        weight: Merged, ``(G, O, d)``.
        bias: Merged, ``(G, O)``.
    """

    def __init__(
        self, kernels: Tensor, gamma: Tensor, beta: Tensor, epsilon: Tensor, mean: Tensor, covariance: Tensor
    ) -> None:
        """Merge.

        Args:
            kernels: ``(G, B, O, d)``.
            gamma: BatchNorms' factors, ``(G, B, O)``.
            beta: BatchNorms' offsets, ``(G, B, O)``.
            epsilon: BatchNorms' least variances, ``(B, 1)``.
            mean: Of the patches, ``(G, d)``.
            covariance: Of the patches, ``(G, d, d)``.
        """
        self.kernels, self.gamma, self.patch_mean = kernels, gamma, mean
        flat = kernels.flatten(1, 2)
        self.product = (flat @ covariance).view(kernels.shape)
        self.means = (flat @ mean[:, :, None]).view(gamma.shape)
        self.variances = (self.product * kernels).sum(dim=3).clamp_(min=0)
        self.scale = torch.rsqrt(self.variances + epsilon)
        self.factor = gamma * self.scale
        self.weight = (self.factor[..., None] * kernels).sum(dim=1)
        self.bias = torch.addcmul(beta, self.factor, self.means, value=-1).sum(dim=1)

    def is_certain(self, covariance: Tensor) -> bool:
        """Whether all variances are more than a small difference of large sums, which float32 could not tell."""
        square = covariance.diagonal(dim1=1, dim2=2) + self.patch_mean.square()
        seen = (self.kernels.square().flatten(1, 2) @ square[:, :, None]).view(self.variances.shape)
        return not bool((self.variances < _LEAST_CERTAIN * seen).any())

    def backward(self, weight: Tensor, bias: Tensor) -> BranchGradients:
        """Go back.

        Args:
            weight: Gradient of the merged kernel, ``(G, O, d)``.
            bias: Gradient of the merged bias, ``(G, O)``; of each beta as well.
        """
        bias = bias[:, None]
        factor = (weight[:, None] * self.kernels).sum(dim=3) - bias * self.means
        gamma = factor * self.scale
        # d sigma^-1 / d variance = -sigma^-3 / 2
        variance = gamma * self.factor * self.scale * -0.5
        mean = self.factor * -bias
        kernels = self.factor[..., None] * weight[:, None]
        kernels.addcmul_(variance[..., None], self.product, value=2)
        kernels.addcmul_(mean[..., None], self.patch_mean[:, None, None])
        flat = self.kernels.flatten(1, 2)
        weighted = variance.flatten(1)[..., None] * flat
        return BranchGradients(kernels, gamma, (mean.flatten(1)[:, None] @ flat)[:, 0], torch.bmm(weighted.mT, flat))
