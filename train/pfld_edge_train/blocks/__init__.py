"""Building blocks of the networks."""

from pfld_edge_train.blocks.convolutions import Activation, GhostBottleneck, GhostModule, InvertedResidual, conv_block
from pfld_edge_train.blocks.mobileone import GhostOneBottleneck, GhostOneModule, MobileOneBlock

__all__ = [
    "Activation",
    "GhostBottleneck",
    "GhostModule",
    "GhostOneBottleneck",
    "GhostOneModule",
    "InvertedResidual",
    "MobileOneBlock",
    "conv_block",
]
