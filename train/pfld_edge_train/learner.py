"""A network in training: learning rates and freezing of layers, optimizer, averaged weights."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from pfld_edge_train.config import FinetuneConfig, TrainConfig
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.models import AuxiliaryNet, LandmarkNet, WithAuxiliary
from pfld_edge_train.models.edge import HeatMapLogits
from pfld_edge_train.processes import Processes

LAST_LAYER = "fc"
"""The output layer of every network."""
BACKBONE = "backbone"
"""Stands for all other layers."""
REFINEMENT_RATE = 0.1
"""Factor to a `Refinement`'s learning rate: its inputs are correlated, and at the full rate Adam's noise undoes what it
learned (error on training faces 0.0270 instead of 0.0296)."""

_MOMENTUM = 0.95
"""Share of `Muon`'s momentum that stays in a step."""


@dataclass(slots=True)
class Learner:
    """A network in training: `average` is the exponential moving average of its weights, `step` the steps done.

    `auxiliary` predicts the head's pose from its features, where the loss needs it. A step calls `runner`: both
    networks, wrapped for several processes, compiled. `scaler` does nothing in other precisions than float16.
    """

    model: LandmarkNet
    average: nn.Module
    auxiliary: AuxiliaryNet | None
    optimizer: torch.optim.Optimizer
    runner: nn.Module
    scaler: torch.amp.GradScaler
    step: int = 0

    def predict(self, faces: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map ``(N, 3, S, S)`` to what the loss takes and, with an auxiliary network, angles ``(N, 3)``.

        The loss takes landmarks ``(N, P, 2)``, or heat maps ``(N, P, cells)`` where it is dense.
        """
        found = self.runner(faces.contiguous(memory_format=torch.channels_last))
        landmarks, angles = found if self.auxiliary is not None else (found, None)
        return landmarks if landmarks.ndim == 3 else landmarks.view(len(landmarks), -1, 2), angles


def make_learner(model: LandmarkNet, config: TrainConfig, processes: Processes) -> Learner:
    """Prepare a network with its initial weights for training."""
    model = model.to(processes.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    auxiliary = None
    runner: nn.Module = model
    if config.loss.needs_auxiliary:
        auxiliary = AuxiliaryNet(model.feature_channels, config.input_size).to(processes.device)
        runner = WithAuxiliary(model, auxiliary)
    elif config.loss.kind == "dense":
        runner = HeatMapLogits(model)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    groups = parameter_groups(model, config.optimizer.weight_decay, config.finetune, auxiliary)
    outputs = [value for name, value in model.named_parameters() if name.startswith(f"{LAST_LAYER}.")]
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "muon": partial(Muon, outputs=outputs),
    }
    optimizer = kinds[config.optimizer.kind](groups, lr=config.optimizer.learning_rate)
    runner = processes.wrapped(runner)
    if config.compile:
        runner.compile()
    scaler = torch.amp.GradScaler(processes.device.type, enabled=config.fp16)
    return Learner(model, average, auxiliary, optimizer, runner, scaler)


class Muon(torch.optim.AdamW):
    """AdamW, but convolutions that mix channels move by their momentum with all singular values made equal.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. A weight counts as a matrix with a
    row for each output channel. The update's root mean square is the learning rate, as in Adam's first steps, so that
    all parameters share one rate (Liu et al., arXiv 2502.16982, section 2.2, has 0.2 of it). `outputs` are parameters
    that stay with AdamW: those of the last layer, whose rows are no features.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, outputs: Iterable[Tensor] = ()) -> None:
        super().__init__(groups, lr=lr)
        self._outputs = {id(value) for value in outputs}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient; afterwards those of the convolutions are gone."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                mixes_channels = weight.ndim == 4 and weight.shape[1] > 1
                if weight.grad is None or not mixes_channels or id(weight) in self._outputs:
                    continue
                state = self.state[weight]
                if not state:
                    # `AdamW` looks for a step wherever there is a state.
                    state.update(step=torch.zeros(()), momentum=torch.zeros_like(weight))
                state["step"] += 1
                momentum = state["momentum"]
                momentum.lerp_(weight.grad, 1 - _MOMENTUM)
                update = orthogonalized(weight.grad.lerp(momentum, _MOMENTUM).flatten(1))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.view_as(weight), alpha=-group["lr"] * max(update.shape) ** 0.5)
                weight.grad = None
        super().step()
        return loss


def orthogonalized(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of a matrix ``(M, N)``, singular values 0.7 to 1.2.

    Five Newton-Schulz steps with the coefficients of Jordan et al., which converge fastest, not best.
    """
    x = matrix / (matrix.norm() + torch.finfo(matrix.dtype).tiny)
    x = x if len(x) <= x.shape[1] else x.T
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    found: Tensor = x if x.shape == matrix.shape else x.T
    return found


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move averaged weights towards the network's.

    `decay` is the share of the average that stays, 0 to 1; early steps use less, to forget the random start.
    """
    keep = min(decay, (1 + step) / (10 + step))
    state = model.state_dict()
    floats: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            floats[0].append(value)
            floats[1].append(state[name])
        else:
            value.copy_(state[name])
    # All in one call: hundreds of small ones would keep a GPU waiting.
    torch._foreach_lerp_(*floats, 1 - keep)


def freeze_layers(model: nn.Module, names: Sequence[str]) -> None:
    """Freeze the parameters of some layers, in place.

    `names` are layers' names or their beginnings, up to a dot; `BACKBONE` stands for all but the last layer.

    Raises:
        TrainConfigError: A name fits no layer, or nothing would be left to train.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        if name == BACKBONE:
            fitting = [key for key in parameters if not key.startswith(f"{LAST_LAYER}.")]
        else:
            fitting = [key for key in parameters if f"{key}.".startswith(f"{name}.")]
        if not fitting:
            layers = dict.fromkeys(key.split(".")[0] for key in parameters)
            raise TrainConfigError(f"finetune, freeze: no layer {name!r}; the network has {', '.join(layers)}")
        for key in fitting:
            parameters[key].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise TrainConfigError("finetune, freeze: nothing is left to train; leave a layer out")


def training_mode(model: nn.Module, *, freeze_statistics: bool = False) -> None:
    """Put a network into training mode, except BatchNorm of frozen layers, which uses its running statistics.

    Batch statistics would change a frozen layer's output, and its running statistics. With `freeze_statistics` all
    BatchNorm layers keep them.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
        if frozen or (freeze_statistics and isinstance(module, nn.BatchNorm2d)):
            module.eval()


def parameter_groups(
    model: nn.Module, weight_decay: float, config: FinetuneConfig, auxiliary: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Group the parameters that train by weight decay and learning rate, for an optimizer.

    Weights with more than one axis are decayed; biases and BatchNorm's factors are not. A group's factor to the run's
    learning rate is its ``rate``, 1 for the auxiliary network; the last layer comes first, decayed before free. A
    `Refinement` has `REFINEMENT_RATE`.
    """
    factors = {
        name: factor * (REFINEMENT_RATE if ".refinement." in name else 1.0)
        for name, factor in layer_factors(model, config).items()
    }
    trained = [(factors[name], value) for name, value in model.named_parameters() if value.requires_grad]
    trained += [(1.0, value) for value in (() if auxiliary is None else auxiliary.parameters())]
    groups = []
    for factor, decayed in product(sorted({factor for factor, _ in trained}, reverse=True), (True, False)):
        chosen = [value for own, value in trained if own == factor and (value.ndim > 1) == decayed]
        if chosen:
            groups.append({"params": chosen, "weight_decay": weight_decay if decayed else 0.0, "rate": factor})
    return groups


def layer_factors(model: nn.Module, config: FinetuneConfig) -> dict[str, float]:
    """Each parameter's factor to the run's learning rate: 1 in the last layer."""
    layers = [layer for layer in dict(_layers(model)) if layer != LAST_LAYER]
    of_layer = {
        layer: config.backbone_rate * config.layer_decay**distance
        for distance, layer in enumerate(reversed(layers), start=1)
    } | {LAST_LAYER: 1.0}
    owners = {name: layer for layer, module in _layers(model) for name, _ in module.named_parameters(prefix=layer)}
    return {name: of_layer[layer] for name, layer in owners.items()}


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name a network's layers from its input on; a sequence of blocks counts as as many layers."""
    for name, child in model.named_children():
        blocks = list(child.named_children()) if isinstance(child, nn.Sequential) else []
        # A convolution with its BatchNorm is a sequence too, but one layer.
        if blocks and all(any(True for _ in block.children()) for _, block in blocks):
            yield from ((f"{name}.{inner}", block) for inner, block in blocks)
        else:
            yield name, child
