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
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

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
    return fused.requires_grad_(False)


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
    """Replace a block's branches by one convolution.

    In float64, for branches may nearly cancel: one rounding, of the merged kernel, instead of one a branch.
    """
    if block.rbr_conv is None:
        return
    branches = [*block.rbr_conv, *([] if block.rbr_scale is None else [block.rbr_scale])]
    convolutions = [cast(nn.Conv2d, branch.get_submodule("conv")) for branch in branches]
    norms = [cast(nn.BatchNorm2d, branch.get_submodule("bn")) for branch in branches]
    main = copy.deepcopy(convolutions[0])
    if block.rbr_skip is not None:
        identity = copy.deepcopy(main)
        nn.init.dirac_(identity.weight, identity.groups)
        convolutions.append(identity)
        norms.append(block.rbr_skip)
    folded = [_folded(*pair) for pair in zip(convolutions, norms, strict=True)]
    # A smaller odd kernel lies at the centre of a larger one.
    margins = [(main.kernel_size[0] - each.kernel_size[0]) // 2 for each in folded]
    kernels = [F.pad(each.weight, [margin] * 4) for each, margin in zip(folded, margins, strict=True)]
    biases = [each.bias for each in folded if each.bias is not None]
    dtype = main.weight.dtype
    main.weight = nn.Parameter(torch.stack(kernels).sum(dim=0).to(dtype))
    main.bias = nn.Parameter(torch.stack(biases).sum(dim=0).to(dtype))
    block.rbr_conv = block.rbr_scale = block.rbr_skip = None
    block.reparam_conv = main


def _fuse_sequence(sequence: nn.Sequential) -> None:
    """Fold each BatchNorm that follows a convolution in a sequence; an empty sequence keeps its place."""
    for i in range(len(sequence) - 1):
        conv, norm = sequence[i], sequence[i + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            sequence[i] = _folded(conv, norm).to(conv.weight.dtype)
            sequence[i + 1] = nn.Sequential()


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution with the BatchNorm behind it folded in, in float64."""
    return fuse_conv_bn_eval(copy.deepcopy(conv).double(), copy.deepcopy(norm).double())
