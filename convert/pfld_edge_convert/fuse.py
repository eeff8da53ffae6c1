"""Merges what training needs and inference doesn't: MobileOne's branches and BatchNorm, into single convolutions.

The algebra: BatchNorm after a convolution is a factor and an offset a channel; a 1x1 kernel is a k x k kernel that is
zero but at its centre; the identity is a 1x1 kernel of ones on the diagonal; and the sum of convolutions of one input
is the convolution with the sum of the kernels (Ding et al., "RepVGG", arXiv 2101.03697, section 3.3; Vasu et al.,
"MobileOne", arXiv 2206.04040, section 3.2).
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_train.blocks import MobileOneBlock

__all__ = ["reparameterize"]


@torch.no_grad()
def reparameterize(model: nn.Module) -> nn.Module:
    """Merge every branch and every BatchNorm that follows a convolution.

    Args:
        model: Any network of `pfld_edge_train.models`; it is not changed.

    Returns:
        A copy in evaluation mode with equal output: within 1e-5 in float64 and 1e-4 in float32.
    """
    fused = copy.deepcopy(model).eval()
    for module in list(fused.modules()):
        if isinstance(module, MobileOneBlock):
            _fuse_block(module)
        elif isinstance(module, nn.Sequential):
            _fuse_sequence(module)
    return fused


def _fuse_block(block: MobileOneBlock) -> None:
    """Replace a block's branches by one convolution."""
    if block.rbr_conv is None:
        return
    main = _conv_of(block.rbr_conv[0])
    size = main.kernel_size[0]
    kernels = [_conv_bn_kernel(_conv_of(branch), _norm_of(branch)) for branch in block.rbr_conv]
    if block.rbr_scale is not None:
        kernels.append(_conv_bn_kernel(_conv_of(block.rbr_scale), _norm_of(block.rbr_scale)))
    if block.rbr_skip is not None:
        kernels.append(_normalized(_identity_kernel(main), block.rbr_skip))
    merged = _with_bias(main)
    merged.weight.copy_(sum(_padded(weight, size) for weight, _ in kernels))
    assert merged.bias is not None  # noqa: S101 - for the type checker: _with_bias gives one
    merged.bias.copy_(sum(bias for _, bias in kernels))
    block.rbr_conv = block.rbr_scale = block.rbr_skip = None
    block.reparam_conv = merged


def _fuse_sequence(sequence: nn.Sequential) -> None:
    """Fold each BatchNorm that follows a convolution in a sequence; an empty sequence keeps its place."""
    for i in range(len(sequence) - 1):
        conv, norm = sequence[i], sequence[i + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            merged = _with_bias(conv)
            weight, bias = _conv_bn_kernel(conv, norm)
            merged.weight.copy_(weight)
            assert merged.bias is not None  # noqa: S101 - for the type checker: _with_bias gives one
            merged.bias.copy_(bias)
            sequence[i], sequence[i + 1] = merged, nn.Sequential()


def _conv_bn_kernel(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    weight, bias = _normalized(conv.weight, norm)
    if conv.bias is not None:
        bias = bias + conv.bias * _factor(norm)
    return weight, bias


def _normalized(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution without bias followed by BatchNorm."""
    assert norm.running_mean is not None  # noqa: S101 - for the type checker: ours track statistics
    factor = _factor(norm)
    return weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor


def _factor(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_var is not None  # noqa: S101 - for the type checker: ours track statistics
    return norm.weight / torch.sqrt(norm.running_var + norm.eps)


def _identity_kernel(conv: nn.Conv2d) -> Tensor:
    """The 1x1 kernel that copies its input, in the groups of a convolution."""
    channels, inputs = conv.weight.shape[:2]
    kernel = torch.zeros(channels, inputs, 1, 1, dtype=conv.weight.dtype, device=conv.weight.device)
    index = torch.arange(channels)
    kernel[index, index % inputs] = 1
    return kernel


def _padded(weight: Tensor, size: int) -> Tensor:
    """Put a smaller odd kernel at the centre of a larger one."""
    return F.pad(weight, [(size - weight.shape[-1]) // 2] * 4)


def _with_bias(conv: nn.Conv2d) -> nn.Conv2d:
    """Build an empty convolution of the same shape, with bias."""
    merged = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type] - a pair of ints for Conv2d
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        groups=conv.groups,
        dtype=conv.weight.dtype,
        device=conv.weight.device,
    )
    return merged.requires_grad_(False)


def _conv_of(branch: nn.Module) -> nn.Conv2d:
    conv = branch.get_submodule("conv")
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"expected a convolution in the branch, found {type(conv).__name__}")
    return conv


def _norm_of(branch: nn.Module) -> nn.BatchNorm2d:
    norm = branch.get_submodule("bn")
    if not isinstance(norm, nn.BatchNorm2d):
        raise TypeError(f"expected BatchNorm in the branch, found {type(norm).__name__}")
    return norm
