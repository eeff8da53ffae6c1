"""Reparameterization: MobileOne's branches and BatchNorm become single convolutions.

The algebra: BatchNorm after a convolution is a factor and an offset a channel; a 1x1 kernel is a k x k kernel that is
zero but at its centre; the identity is a 1x1 kernel of ones on the diagonal; and the sum of convolutions of one input
is the convolution with the sum of the kernels (Ding et al., "RepVGG", arXiv 2101.03697, section 3.3; Vasu et al.,
"MobileOne", arXiv 2206.04040, section 3.2).
"""

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_train.blocks import MobileOneBlock

Part = TypeVar("Part", bound=nn.Module)


@torch.no_grad()
def reparameterize(model: nn.Module) -> nn.Module:
    """Merge every branch and every BatchNorm that follows a convolution of a network of `pfld_edge_train.models`.

    Gives a copy in evaluation mode with equal output: within 1e-5 in float64 and 1e-4 in float32.
    """
    fused = copy.deepcopy(model).eval()
    for module in list(fused.modules()):
        if isinstance(module, MobileOneBlock):
            _fuse_block(module)
        elif isinstance(module, nn.Sequential):
            _fuse_sequence(module)
    return fused


def training_form(model: nn.Module, fused: nn.Module) -> str:
    """Describe in one line what `reparameterize` merges, from the network before and after."""
    convolutions, norms = _count(model, nn.Conv2d), _count(model, nn.BatchNorm2d)
    left = _count(fused, nn.Conv2d)
    if convolutions == left and not norms:
        return f"inference form: {left} convolutions, nothing to merge"
    branches = [
        len(block.rbr_conv) + (block.rbr_scale is not None) + (block.rbr_skip is not None)
        for block in model.modules()
        if isinstance(block, MobileOneBlock) and block.rbr_conv is not None
    ]
    blocks = f"{len(branches)} blocks of up to {max(branches)} branches" if branches else "Conv + BatchNorm pairs"
    return (
        f"training form: {_parameters(model) / 1e6:.3f} M parameters, {convolutions} convolutions, {norms} BatchNorm; "
        f"convert merges them ({blocks}) into {left} convolutions, {_parameters(fused) / 1e6:.3f} M parameters"
    )


def _fuse_block(block: MobileOneBlock) -> None:
    """Replace a block's branches by one convolution."""
    if block.rbr_conv is None:
        return
    main = _part(block.rbr_conv[0], "conv", nn.Conv2d)
    size = main.kernel_size[0]
    branches = [*block.rbr_conv, *([] if block.rbr_scale is None else [block.rbr_scale])]
    kernels = [
        _conv_bn_kernel(_part(branch, "conv", nn.Conv2d), _part(branch, "bn", nn.BatchNorm2d)) for branch in branches
    ]
    if block.rbr_skip is not None:
        kernels.append(_normalized(_identity_kernel(main), block.rbr_skip))
    weight = torch.stack([_padded(weight, size) for weight, _ in kernels]).sum(dim=0)
    bias = torch.stack([bias for _, bias in kernels]).sum(dim=0)
    block.rbr_conv = block.rbr_scale = block.rbr_skip = None
    block.reparam_conv = _convolution_like(main, weight, bias)


def _fuse_sequence(sequence: nn.Sequential) -> None:
    """Fold each BatchNorm that follows a convolution in a sequence; an empty sequence keeps its place."""
    for i in range(len(sequence) - 1):
        conv, norm = sequence[i], sequence[i + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            sequence[i] = _convolution_like(conv, *_conv_bn_kernel(conv, norm))
            sequence[i + 1] = nn.Sequential()


def _conv_bn_kernel(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    weight, bias = _normalized(conv.weight, norm)
    if conv.bias is not None:
        bias = bias + conv.bias * _factor(norm)
    return weight, bias


def _normalized(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias, in float64, of a convolution without bias followed by BatchNorm."""
    factor = _factor(norm)
    mean = norm.get_buffer("running_mean")
    return weight * factor[:, None, None, None], norm.bias - mean * factor


def _factor(norm: nn.BatchNorm2d) -> Tensor:
    # In float64, for branches may nearly cancel: one rounding, of the merged kernel, instead of one a branch.
    return norm.weight.double() / torch.sqrt(norm.get_buffer("running_var").double() + norm.eps)


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


def _convolution_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Build a convolution with the geometry and precision of another, and a bias."""
    merged = copy.deepcopy(conv)
    merged.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    merged.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    return merged


def _part(branch: nn.Module, name: str, kind: type[Part]) -> Part:
    part = branch.get_submodule(name)
    if not isinstance(part, kind):
        raise TypeError(f"expected {kind.__name__} in the branch, found {type(part).__name__}")
    return part


def _count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def _parameters(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())
