"""The ``[optimizer]`` table of a training configuration."""

from dataclasses import dataclass

__all__ = ["OptimizerConfig"]


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """How weights move.

    Attributes:
        learning_rate: Peak of the schedule (linear warm-up, then cosine to zero).
        warmup_epochs: Length of the warm-up.
        weight_decay: AdamW's, on weights with more than one axis.
        clip_norm: Largest norm of the gradient.
        ema_decay: Of the weights' exponential moving average, which is what is evaluated and shipped.
    """

    learning_rate: float = 2e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    ema_decay: float = 0.999
