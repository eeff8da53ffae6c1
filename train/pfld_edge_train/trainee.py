"""What changes while a network trains."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pfld_edge_train.config import TrainConfig
from pfld_edge_train.ema import ema_copy
from pfld_edge_train.layer_rates import parameter_groups
from pfld_edge_train.models import AuxiliaryNet, LandmarkNet, WithAuxiliary
from pfld_edge_train.processes import Processes

__all__ = ["Trainee", "make_trainee"]


@dataclass(slots=True)
class Trainee:
    """A network in training.

    Attributes:
        model: The landmark network.
        average: Exponential moving average of its weights.
        auxiliary: Predicts the head's pose from its features, where the loss asks for that.
        optimizer: Over both.
        runner: What a step calls: the network, with its auxiliary one, wrapped for several processes, compiled.
        scaler: Keeps float16's gradients in its range; does nothing in other precisions.
        step: Steps done.
    """

    model: LandmarkNet
    average: nn.Module
    auxiliary: AuxiliaryNet | None
    optimizer: torch.optim.Optimizer
    runner: nn.Module
    scaler: torch.amp.GradScaler
    step: int = 0

    def predict(self, faces: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map ``(N, 3, S, S)`` to landmarks ``(N, P, 2)`` and, with an auxiliary network, angles ``(N, 3)``."""
        found = self.runner(faces.contiguous(memory_format=torch.channels_last))
        landmarks, angles = found if self.auxiliary is not None else (found, None)
        return landmarks.view(len(landmarks), -1, 2), angles


def make_trainee(model: LandmarkNet, config: TrainConfig, processes: Processes) -> Trainee:
    """Put a network into training.

    Args:
        model: With the weights that it starts from.
        config: The run.
        processes: Where it runs.
    """
    model = model.to(processes.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    auxiliary = None
    runner: nn.Module = model
    if config.loss.needs_auxiliary:
        auxiliary = AuxiliaryNet(model.feature_channels, config.input_size).to(processes.device)
        runner = WithAuxiliary(model, auxiliary)
    average = ema_copy(model)
    optimizer = _optimizer(model, auxiliary, config)
    runner = processes.wrapped(runner)
    if config.compile:
        runner.compile()
    scaler = torch.amp.GradScaler(processes.device.type, enabled=config.fp16)
    return Trainee(model, average, auxiliary, optimizer, runner, scaler)


def _optimizer(model: nn.Module, auxiliary: nn.Module | None, config: TrainConfig) -> torch.optim.Optimizer:
    """Biases and BatchNorm's factors are not decayed."""
    groups = parameter_groups(model, config.optimizer.weight_decay, config.finetune, auxiliary)
    kinds: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    return kinds[config.optimizer.kind](groups, lr=config.optimizer.learning_rate)  # type: ignore[call-arg]
