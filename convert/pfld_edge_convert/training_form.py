"""What a checkpoint holds for training only, and what is left of it at inference."""

from torch import nn

from pfld_edge_train.blocks import MobileOneBlock

__all__ = ["training_form"]


def training_form(model: nn.Module, fused: nn.Module) -> str:
    """Say in one line what `convert` merges.

    Args:
        model: The network as the checkpoint has it.
        fused: What `reparameterize` makes of it.
    """
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


def _count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def _parameters(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())
