"""Building blocks of the networks, one idea a file."""

from pfld_edge_train.blocks.conv_block import conv_block
from pfld_edge_train.blocks.depthwise import DepthwiseSeparableConv
from pfld_edge_train.blocks.ghost import GhostBottleneck, GhostModule
from pfld_edge_train.blocks.ghostone import GhostOneBottleneck, GhostOneModule
from pfld_edge_train.blocks.inverted_residual import InvertedResidual
from pfld_edge_train.blocks.mobileone import MobileOneBlock

__all__ = [
    "DepthwiseSeparableConv",
    "GhostBottleneck",
    "GhostModule",
    "GhostOneBottleneck",
    "GhostOneModule",
    "InvertedResidual",
    "MobileOneBlock",
    "conv_block",
]
