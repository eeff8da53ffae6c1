"""One epoch of training, and one look at the validation faces."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from pfld_edge_train.batches import Batch
from pfld_edge_train.config import TrainConfig
from pfld_edge_train.ema import update_ema
from pfld_edge_train.errors import TrainingDivergedError
from pfld_edge_train.frozen_layers import training_mode
from pfld_edge_train.layer_rates import parameter_groups
from pfld_edge_train.losses import point_loss

__all__ = ["Trainee", "evaluate", "learning_rate_at", "make_optimizer", "train_one_epoch"]


@dataclass(slots=True)
class Trainee:
    """What changes while a network trains.

    Attributes:
        model: The network in training.
        average: Exponential moving average of its weights.
        optimizer: AdamW over `model`.
        step: Steps done.
    """

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; biases and BatchNorm's factors are not decayed."""
    groups = parameter_groups(model, config.optimizer.weight_decay, config.finetune)
    return torch.optim.AdamW(groups, lr=config.optimizer.learning_rate)


def learning_rate_at(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Linear warm-up to the peak, then a half cosine to zero (Loshchilov & Hutter 2017, without restarts)."""
    warmup = max(1.0, config.optimizer.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch
    if step < warmup:
        return config.optimizer.learning_rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    return config.optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train_one_epoch(
    trainee: Trainee,
    batches: Iterable[Batch],
    config: TrainConfig,
    steps_per_epoch: int,
    advance: Callable[[float], None],
) -> float:
    """Train over the batches once.

    Args:
        trainee: Changed in place.
        batches: Of one epoch.
        config: The run.
        steps_per_epoch: For the schedule.
        advance: Called with each step's loss, for a progress bar.

    Returns:
        Mean loss, in pixels.

    Raises:
        TrainingDivergedError: The loss is NaN or infinite.
    """
    training_mode(trainee.model)
    losses = []
    for batch in batches:
        for group in trainee.optimizer.param_groups:
            group["lr"] = learning_rate_at(trainee.step, steps_per_epoch, config) * group["rate_factor"]
        loss = _loss(trainee.model, batch, config)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"the loss is {value} at step {trainee.step}: lower learning_rate (now "
                f"{config.optimizer.learning_rate:g}) and --resume from the last checkpoint, which is whole"
            )
        trainee.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(trainee.model.parameters(), config.optimizer.clip_norm)
        trainee.optimizer.step()
        update_ema(trainee.average, trainee.model, config.optimizer.ema_decay, trainee.step)
        trainee.step += 1
        losses.append(value)
        advance(value)
    return sum(losses) / max(1, len(losses))


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], normalizing_points: tuple[int, int]) -> float:
    """Mean NME over the batches, weighted by the trust in each landmark."""
    model.eval()
    total, weight = 0.0, 0.0
    first, second = normalizing_points
    for batch in batches:
        landmarks = batch.landmarks
        predicted = model(batch.faces.contiguous(memory_format=torch.channels_last)).view(landmarks.shape)
        errors = (predicted - landmarks).norm(dim=2)
        distance = (landmarks[:, first] - landmarks[:, second]).norm(dim=1)
        total += float((errors / distance[:, None] * batch.weights).sum())
        weight += float(batch.weights.sum())
    return total / weight


def _loss(model: nn.Module, batch: Batch, config: TrainConfig) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
        predicted = model(batch.faces.contiguous(memory_format=torch.channels_last))
    size = config.input_size
    landmarks = predicted.float().view(batch.landmarks.shape)
    losses = point_loss(config.loss)(landmarks * size, batch.landmarks * size)
    return (losses * batch.weights).sum() / batch.weights.sum()
