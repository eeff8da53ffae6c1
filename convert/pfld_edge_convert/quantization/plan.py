"""The numbers of an INT8 network, apart from the nodes that will hold them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pfld_edge_convert.quantization.grid import Grid
from pfld_edge_convert.quantization.weights import IntegerWeights

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What each tensor and layer becomes.

    Attributes:
        grids: Grid of each activation that may be 8-bit, by the tensor's name in the float network.
        weights: Integer weights of each layer, by `Layer.output`; layers that aren't here stay in float.
    """

    grids: Mapping[str, Grid]
    weights: Mapping[str, IntegerWeights] = field(default_factory=dict)
