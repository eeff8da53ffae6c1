"""A network as pure dataflow: what is computed from what, without names, layouts or no-ops."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Flow", "Geometry"]

Weights = TypeVar("Weights")


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape and movement of a convolution or a linear layer.

    Attributes:
        shape: Of the weight: ``(out, in / groups, kh, kw)``, or ``(out, in)``.
        stride: Step, equal along both axes; 1 for a linear layer.
        padding: Zeros on each side; 0 for a linear layer.
        groups: Groups of channels; 1 for a linear layer.
    """

    shape: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    groups: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Flow(Generic[Weights]):
    """One value of a network, compared by identity.

    Attributes:
        op: ``input``, ``conv``, ``linear``, ``relu``, ``add``, ``concat`` or ``pool`` (the mean over the whole map).
            Flattening and slices that cut nothing away don't appear.
        inputs: What the value is computed from, in order.
        geometry: Of ``conv`` and ``linear``.
        weights: What holds their numbers, in whatever form the source has them.
    """

    op: str
    inputs: tuple["Flow[Weights]", ...] = ()
    geometry: Geometry | None = None
    weights: Weights | None = field(default=None, repr=False)
