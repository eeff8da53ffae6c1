"""The ``[optimizer]`` table of a training configuration."""

from dataclasses import dataclass

from pfld_edge_train.errors import TrainConfigError

__all__ = ["OptimizerConfig"]

_CHOICES: dict[str, tuple[str, ...]] = {"kind": ("adamw", "adam"), "schedule": ("cosine", "constant")}


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """How weights move.

    Attributes:
        kind: ``adamw`` (decoupled weight decay) or ``adam`` (decay as a part of the gradient).
        learning_rate: Peak of the schedule.
        schedule: After the linear warm-up, half a ``cosine`` to zero, or ``constant``.
        warmup_epochs: Length of the warm-up.
        weight_decay: On weights with more than one axis.
        clip_norm: Largest norm of the gradient.
        ema_decay: Of the weights' exponential moving average, which is what is evaluated and shipped.

    Raises:
        TrainConfigError: A value is out of range.
    """

    kind: str = "adamw"
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        """Check the values."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise TrainConfigError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(choices)}")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainConfigError(f"{name} must be positive, found {getattr(self, name)}")
        for name in ("warmup_epochs", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise TrainConfigError(f"{name} must be 0 or positive, found {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise TrainConfigError(f"ema_decay must be from 0 to below 1, found {self.ema_decay}")
