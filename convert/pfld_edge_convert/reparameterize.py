"""Reparameterization: MobileOne's branches and BatchNorm become single convolutions.

The algebra: BatchNorm after a convolution is a factor and an offset a channel; a 1x1 kernel is a k x k kernel that is
zero but at its centre; the identity is a 1x1 kernel of ones on the diagonal; and the sum of convolutions of one input
is the convolution with the sum of the kernels (Ding et al., "RepVGG", arXiv 2101.03697, section 3.3; Vasu et al.,
"MobileOne", arXiv 2206.04040, section 3.2).
"""

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_train.blocks import MobileOneBlock


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
    convolutions, norms, left = (
        sum(isinstance(module, kind) for module in network.modules())
        for network, kind in ((model, nn.Conv2d), (model, nn.BatchNorm2d), (fused, nn.Conv2d))
    )
    before, after = (sum(value.numel() for value in network.parameters()) / 1e6 for network in (model, fused))
    if convolutions == left and not norms:
        return f"inference form: {left} convolutions, nothing to merge"
    branches = [
        len(block.rbr_conv) + (block.rbr_scale is not None) + (block.rbr_skip is not None)
        for block in model.modules()
        if isinstance(block, MobileOneBlock) and block.rbr_conv is not None
    ]
    blocks = f"{len(branches)} blocks of up to {max(branches)} branches" if branches else "Conv + BatchNorm pairs"
    return (
        f"training form: {before:.3f} M parameters, {convolutions} convolutions, {norms} BatchNorm; "
        f"convert merges them ({blocks}) into {left} convolutions, {after:.3f} M parameters"
    )


def _fuse_block(block: MobileOneBlock) -> None:
    """Replace a block's branches by one convolution."""
    if block.rbr_conv is None:
        return
    branches = [*block.rbr_conv, *([] if block.rbr_scale is None else [block.rbr_scale])]
    convolutions = [cast(nn.Conv2d, branch.get_submodule("conv")) for branch in branches]
    norms = [cast(nn.BatchNorm2d, branch.get_submodule("bn")) for branch in branches]
    main, size = convolutions[0], convolutions[0].kernel_size[0]
    kernels = [_normalized(conv.weight, norm, conv.bias) for conv, norm in zip(convolutions, norms, strict=True)]
    if block.rbr_skip is not None:
        kernels.append(_normalized(_identity_kernel(main), block.rbr_skip))
    # A smaller odd kernel lies at the centre of a larger one.
    padded = [F.pad(weight, [(size - weight.shape[-1]) // 2] * 4) for weight, _ in kernels]
    weight = torch.stack(padded).sum(dim=0)
    bias = torch.stack([bias for _, bias in kernels]).sum(dim=0)
    block.rbr_conv = block.rbr_scale = block.rbr_skip = None
    block.reparam_conv = _convolution_like(main, weight, bias)


def _fuse_sequence(sequence: nn.Sequential) -> None:
    """Fold each BatchNorm that follows a convolution in a sequence; an empty sequence keeps its place."""
    for i in range(len(sequence) - 1):
        conv, norm = sequence[i], sequence[i + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            sequence[i] = _convolution_like(conv, *_normalized(conv.weight, norm, conv.bias))
            sequence[i + 1] = nn.Sequential()


def _normalized(weight: Tensor, norm: nn.BatchNorm2d, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution followed by BatchNorm.

    In float64, for branches may nearly cancel: one rounding, of the merged kernel, instead of one a branch.
    """
    factor = norm.weight.double() / torch.sqrt(norm.get_buffer("running_var").double() + norm.eps)
    shift = norm.bias - norm.get_buffer("running_mean") * factor
    return weight * factor[:, None, None, None], shift if bias is None else shift + bias * factor


def _identity_kernel(conv: nn.Conv2d) -> Tensor:
    """The 1x1 kernel that copies its input, in the groups of a convolution."""
    channels, inputs = conv.weight.shape[:2]
    kernel = torch.zeros(channels, inputs, 1, 1, dtype=conv.weight.dtype, device=conv.weight.device)
    index = torch.arange(channels)
    kernel[index, index % inputs] = 1
    return kernel


def _convolution_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Build a convolution with the geometry and precision of another, and a bias."""
    merged = copy.deepcopy(conv)
    merged.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    merged.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    return merged
