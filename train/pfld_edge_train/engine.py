"""One training step."""

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from pfld_edge_train.batches import Batch
from pfld_edge_train.config import TrainConfig
from pfld_edge_train.ema import update_ema
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.processes import Processes
from pfld_edge_train.schedule import learning_rate_at
from pfld_edge_train.trainee import Trainee

__all__ = ["train_step"]


def train_step(
    trainee: Trainee,
    batch: Batch,
    loss_of: LandmarkLoss,
    config: TrainConfig,
    steps_per_epoch: int,
    processes: Processes,
    save: bool = False,
    stop: bool = False,
) -> Tensor:
    """Move the weights once.

    Args:
        trainee: In training mode; changed in place.
        batch: This process's part of the whole batch, on its device.
        loss_of: What is minimised.
        config: The run.
        steps_per_epoch: For the schedule.
        processes: Those of the run.
        save: Whether this process wants a checkpoint, for all to know.
        stop: Whether this process was asked to stop, for all to know.

    Returns:
        ``(4,)`` on the device, what `FigureReader` reads. A loss that is not finite has spoilt the weights:
        whoever saves them reads the figures first.
    """
    rate = learning_rate_at(trainee.step, steps_per_epoch, config)
    for group in trainee.optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)
    # Gradients are averaged over processes, so that each one's share of the loss is that much larger.
    trust = processes.summed(batch.weights.sum()).clamp_min(1e-6) / processes.count
    with torch.autocast(processes.device.type, _precision(config), enabled=config.bf16 or config.fp16):
        predicted, angles = trainee.predict(batch.faces)
    loss = loss_of(predicted, batch, angles, trust)
    trainee.optimizer.zero_grad(set_to_none=True)
    trainee.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    trainee.scaler.unscale_(trainee.optimizer)
    norm = clip_grad_norm_(trainee.runner.parameters(), config.optimizer.clip_norm)
    trainee.scaler.step(trainee.optimizer)
    trainee.scaler.update()
    update_ema(trainee.average, trainee.model, config.optimizer.ema_decay, trainee.step)
    trainee.step += 1
    share = processes.count
    figures = [loss.detach() / share, norm.to(loss.dtype) / share, loss.new_full((), save), loss.new_full((), stop)]
    return processes.summed(torch.stack(figures))


def _precision(config: TrainConfig) -> torch.dtype:
    return torch.float16 if config.fp16 else torch.bfloat16
