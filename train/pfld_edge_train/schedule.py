"""The learning rate, step by step."""

import math

from pfld_edge_train.config import TrainConfig

__all__ = ["learning_rate_at"]


def learning_rate_at(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Linear warm-up to the peak, then half a cosine to zero (Loshchilov & Hutter 2017, without restarts), or the peak.

    Args:
        step: Steps done.
        steps_per_epoch: Of the whole run.
        config: Gives the epochs and the optimizer's table.
    """
    optimizer = config.optimizer
    warmup = max(1.0, optimizer.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    progress = min(1.0, (step - warmup) / max(1.0, config.epochs * steps_per_epoch - warmup))
    return optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
