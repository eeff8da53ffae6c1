"""Keeps the fewest layers in float with which an INT8 network stays within a drift."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pfld_edge_convert.quantization.quantizer import Quantized
from pfld_edge_convert.quantization.sensitivity import LayerCost

__all__ = ["MOST_FLOAT_LAYERS", "Budget", "FaceDrift", "keep_within"]

MOST_FLOAT_LAYERS = 12
"""More layers in float than this, and the file is no INT8 network any more."""


@dataclass(frozen=True, slots=True)
class FaceDrift:
    """Relative change of the NME: 0.01 is one percent worse.

    Attributes:
        all: Over all faces.
        turned: Over the faces that turn most (``largepose``, where the set says so).
    """

    all: float
    turned: float


@dataclass(frozen=True, slots=True)
class Budget:
    """What came of a budget.

    Attributes:
        allowed: The largest drift that was asked for.
        drifts: Drift with no layer in float, with the most expensive one, with two, and so on; the last was kept.
        float_layers: Those that stayed in float.
    """

    allowed: float
    drifts: tuple[FaceDrift, ...]
    float_layers: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the drift over all faces stayed within what was allowed."""
        return self.drifts[-1].all <= self.allowed


def keep_within(
    make: Callable[[tuple[str, ...]], Quantized],
    costs: Sequence[LayerCost],
    drift: Callable[[Quantized], FaceDrift],
    allowed: float,
    most: int = MOST_FLOAT_LAYERS,
) -> tuple[Quantized, Budget]:
    """Give layers back to float, the most expensive first, until the drift is within the budget.

    Args:
        make: Makes the network with the named layers in float (`Quantizer.make`).
        costs: Of its layers; they are ranked by what they cost all faces and the most turned ones together.
        drift: Measures a network on labelled faces that were not calibrated on.
        allowed: Largest drift over all faces.
        most: Give up after so many layers.

    Returns:
        The network with the fewest layers in float that holds the budget, or the one with the least drift where none
        does; and what came of it.
    """
    ranked = [cost.layer for cost in sorted(costs, key=lambda cost: -(cost.deviation + cost.turned))]
    tried: list[FaceDrift] = []
    made: list[Quantized] = []
    for count in range(min(most, len(ranked)) + 1):
        made.append(make(tuple(ranked[:count])))
        tried.append(drift(made[-1]))
        if tried[-1].all <= allowed:
            return made[-1], Budget(allowed, tuple(tried), made[-1].float_layers)
    chosen = min(range(len(tried)), key=lambda count: tried[count].all)
    return made[chosen], Budget(allowed, (*tried, tried[chosen]), made[chosen].float_layers)
