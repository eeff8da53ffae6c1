"""The ``[loss]`` table of a training configuration."""

from dataclasses import dataclass

__all__ = ["LossConfig"]


@dataclass(frozen=True, slots=True)
class LossConfig:
    """The loss on landmarks, in pixels of the network's input. See `pfld_edge_train.losses`.

    Attributes:
        wing_w: Width of wing loss's logarithmic part, in pixels.
        wing_epsilon: Its curvature, in pixels.
    """

    wing_w: float = 10.0
    wing_epsilon: float = 2.0
