"""Training steps, and one look at the validation faces."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from pfld_edge_train.batches import Batch
from pfld_edge_train.config import TrainConfig
from pfld_edge_train.ema import update_ema
from pfld_edge_train.errors import TrainingDivergedError
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.processes import Processes
from pfld_edge_train.schedule import learning_rate_at
from pfld_edge_train.trainee import Trainee

__all__ = ["evaluate", "train_steps"]


def train_steps(
    trainee: Trainee,
    batches: Iterable[Batch],
    loss_of: LandmarkLoss,
    config: TrainConfig,
    steps_per_epoch: int,
    processes: Processes,
    after: Callable[[float], None],
) -> None:
    """Train over the batches once.

    Args:
        trainee: Changed in place.
        batches: This process's part of each batch.
        loss_of: What is minimised.
        config: The run.
        steps_per_epoch: For the schedule.
        processes: Those of the run.
        after: Called after each step with its loss in pixels, that of the whole batch.

    Raises:
        TrainingDivergedError: The loss is NaN or infinite; no weight has seen it.
    """
    trainee.runner.train()
    for part in batches:
        batch = _moved(part, processes.device)
        for group in trainee.optimizer.param_groups:
            group["lr"] = learning_rate_at(trainee.step, steps_per_epoch, config) * group.get("rate", 1.0)
        # Gradients are averaged over processes, so that each one's share of the loss is that much larger.
        trust = processes.summed(batch.weights.sum()).clamp_min(1e-6) / processes.count
        with torch.autocast(processes.device.type, dtype=torch.bfloat16, enabled=config.bf16):
            predicted, angles = trainee.predict(batch.faces)
        loss = loss_of(predicted, batch, angles, trust)
        value = float(processes.summed(loss.detach())) / processes.count
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"the loss is {value} at step {trainee.step}: lower learning_rate (now "
                f"{config.optimizer.learning_rate:g}) and --resume from the last checkpoint, which is whole"
            )
        trainee.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(trainee.runner.parameters(), config.optimizer.clip_norm)
        trainee.optimizer.step()
        update_ema(trainee.average, trainee.model, config.optimizer.ema_decay, trainee.step)
        trainee.step += 1
        after(value)


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], normalizing_points: tuple[int, int], device: torch.device | None = None
) -> float:
    """Mean NME over the batches, weighted by the trust in each landmark."""
    model.eval()
    total, weight = 0.0, 0.0
    first, second = normalizing_points
    for part in batches:
        batch = part if device is None else _moved(part, device)
        landmarks = batch.landmarks
        predicted = model(batch.faces.contiguous(memory_format=torch.channels_last)).view(landmarks.shape)
        errors = (predicted - landmarks).norm(dim=2)
        distance = (landmarks[:, first] - landmarks[:, second]).norm(dim=1)
        total += float((errors / distance[:, None] * batch.weights).sum())
        weight += float(batch.weights.sum())
    return total / weight


def _moved(batch: Batch, device: torch.device) -> Batch:
    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return replace(
        batch,
        faces=moved(batch.faces),
        landmarks=moved(batch.landmarks),
        weights=moved(batch.weights),
        attributes=moved(batch.attributes),
    )
