"""Makes PFLD-GhostOne's initial weights: each part learns the output of the same part of the published network.

    python train/recipes/stage_hints.py CONFIG TEACHER.onnx OUT.pth [BATCHES]

After FitNets (Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550, section 2.2): hints are
the output maps of the teacher's stem and bottlenecks. Each part reads the teacher's map, so that all learn at once;
what follows the last bottleneck learns the landmarks of the configuration's faces. The weights start random, with
scales set as by Mishkin and Matas ("All you need is a good init", ICLR 2016, arXiv 1511.06422), in the inference form:
five times as many faces a second as with BatchNorm. A stopped run resumes from its last thousand batches. Train from
OUT afterwards, so that the parts learn to correct each other's errors.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import onnx
import torch
from rich.progress import Progress
from torch import Tensor, nn

from pfld_edge_convert.model_file import open_model
from pfld_edge_convert.passes.base import with_outputs
from pfld_edge_runtime import Contract
from pfld_edge_train.batches import Batch, epoch_order, prefetched, training_batches
from pfld_edge_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pfld_edge_train.config import TrainConfig, load_config
from pfld_edge_train.face_cache import FaceCache, open_cache
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.models import ModelConfig, build_model
from pfld_edge_train.models.pfld import MultiScaleNet, all_scales

BATCHES, BATCH_SIZE = 22000, 4
"""Small batches, since a map has many examples: 5,000 faces, 4 at a time, left a half to a seventh of the errors that
16,000 faces left, 32 at a time."""

LEARNING_RATE, LAST_RATE = 5e-3, 3e-4
"""Of the stages with hints, and of the last one, which learns from few landmarks."""

EARLY = 0.5
"""Share of the batches that the first two stages learn from: they are the simplest, and take half of the time."""

AVERAGED = (0, 3, 6, 10)
"""Indices of the maps that the head averages."""


class Teacher:
    """A published GhostOne network, and the outputs of its stem and bottlenecks."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(str(path))
        makers = {name: node.op_type for node in model.graph.node for name in node.output}
        joins = [node for node in model.graph.node if node.op_type == "Concat" and len(node.input) == 2]
        averaged = next(node.input[0] for node in model.graph.node if node.op_type == "AveragePool")
        # Only the module that ends a bottleneck joins what no ReLU has touched.
        self.maps = [averaged, *(node.output[0] for node in joins if makers[node.input[1]] == "Conv")]
        self.session = open_model(with_outputs(model, *self.maps))

    def __call__(self, faces: Tensor) -> list[Tensor]:
        """Give the maps of ``(N, 3, S, S)``, channels last; the file takes one face a call."""
        (name,) = (value.name for value in self.session.get_inputs())
        calls = [self.session.run(self.maps, {name: face[None]}) for face in faces.contiguous().numpy()]
        return [
            torch.from_numpy(np.concatenate(maps)).contiguous(memory_format=torch.channels_last)
            for maps in zip(*calls, strict=True)
        ]


@dataclass
class Stage:
    """A part that learns alone: its function, layers, optimizer, number of batches, peak learning rate."""

    run: Callable[[Tensor], Tensor]
    parts: nn.ModuleList
    optimizer: torch.optim.Optimizer
    batches: int
    rate: float = LEARNING_RATE

    def step(self, loss: Tensor, done: int) -> float:
        """Update the stage's weights once."""
        for group in self.optimizer.param_groups:
            warm = min(1.0, (done + 1) / 100)
            group["lr"] = self.rate * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * done / self.batches)) / 2)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parts.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())


def stages_of(model: MultiScaleNet, batches: int) -> list[Stage]:
    """Split a network into its stem, its bottlenecks, and the rest, which ends in ``conv8``."""
    names = ["3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3", "5_4", "6"]
    parts = [[model.conv1, model.conv2], *([model.get_submodule(f"conv{name}")] for name in names)]
    stages = []
    for layers in [*parts, [model.conv7, model.conv8]]:
        learning = nn.ModuleList([*layers, model.fc] if layers[0] is model.conv7 else layers)
        optimizer = torch.optim.Adam(learning.parameters())
        stages.append(Stage(nn.Sequential(*layers), learning, optimizer, batches))
    for stage in stages[:2]:
        stage.batches = math.ceil(EARLY * batches)
    stages[-1].rate = LAST_RATE
    return stages


@torch.no_grad()
def set_scales(stage: Stage, given: Tensor, hint: Tensor | None) -> None:
    """Give every output a mean of 0 and a variance of 1 on some faces, or the hint's own."""
    layers = [module for module in stage.parts.modules() if isinstance(module, nn.Conv2d)]
    # A bottleneck ends in a Ghost module: half of the channels come from each of its convolutions. The stem has two.
    ends = layers[-2:] if len(layers) > 2 else layers[-1:]
    own = {} if hint is None else dict(zip(ends, hint.chunk(len(ends), dim=1), strict=True))
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        aims = (torch.zeros(len(layer.weight)), torch.ones(len(layer.weight)))
        if layer in own:
            aims = own[layer].mean(dim=(0, 2, 3)), own[layer].std(dim=(0, 2, 3))
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _layer, _given, out, seen=seen: seen.append(out))
        stage.run(given)
        handle.remove()
        out = seen[0]
        gain = aims[1] / out.std(dim=(0, 2, 3)).clamp_min(1e-3)
        layer.weight *= gain[:, None, None, None]
        if layer.bias is not None:
            layer.bias += aims[0] - gain * out.mean(dim=(0, 2, 3))


def spreads(wanted: Tensor) -> Tensor:
    """Variance of each channel, ``(1, C, 1, 1)``, by which errors are divided."""
    variance = wanted.var(dim=(0, 2, 3), keepdim=True)
    return variance.clamp_min(0.05 * float(variance.mean()))


def batches_from(first: int, cache: FaceCache, contract: Contract, config: TrainConfig) -> Iterator[Batch]:
    """Yield the augmented batches of one epoch after the other, without the first ones."""
    an_epoch = len(epoch_order(cache, config.seed, 0)) // BATCH_SIZE
    for epoch in count(first // an_epoch):
        skipped = first % an_epoch if epoch == first // an_epoch else 0
        yield from prefetched(
            training_batches(cache, contract, config.augment, BATCH_SIZE, config.seed, epoch, first_batch=skipped)
        )


@dataclass
class Run:
    """A run: the network, its parts, each hint's scale (`spreads`; empty before the first batch), batches done."""

    model: MultiScaleNet
    stages: list[Stage]
    scales: list[Tensor]
    done: int = 0

    def checkpoint(self, network: ModelConfig, contract: Contract) -> Checkpoint:
        """What a run resumes from, and what training starts from."""
        state = {"stages": [stage.optimizer.state_dict() for stage in self.stages], "scales": self.scales}
        return Checkpoint(
            self.model.state_dict(), network, optimizer=state, step=self.done, contract=contract.to_dict()
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Resume a stopped run."""
        assert checkpoint.optimizer is not None  # noqa: S101 - `checkpoint` wrote it
        self.model.load_state_dict(checkpoint.weights)
        for stage, state in zip(self.stages, checkpoint.optimizer["stages"], strict=True):
            stage.optimizer.load_state_dict(state)
        self.scales, self.done = checkpoint.optimizer["scales"], checkpoint.step

    def learn(self, batch: Batch, teacher: Teacher, loss_of: LandmarkLoss) -> list[float]:
        """Update every part's weights once; give the losses, NaN for parts that are finished."""
        maps = teacher(batch.faces)
        inputs, hints = [batch.faces, *maps], [*maps, None]
        if not self.scales:
            for stage, given, hint in zip(self.stages, inputs, hints, strict=True):
                set_scales(stage, given, hint)
            self.scales = [spreads(hint) for hint in maps]
        losses = []
        for i, stage in enumerate(self.stages):
            if self.done >= stage.batches:
                losses.append(math.nan)
                continue
            found, hint = stage.run(inputs[i]), hints[i]
            if hint is not None:
                loss = ((found - hint).square() / self.scales[i]).mean()
            else:
                features = all_scales([maps[place] for place in AVERAGED], found)
                loss = loss_of(self.model.fc(features).view(len(features), -1, 2), batch)
            losses.append(stage.step(loss, self.done))
        self.done += 1
        return losses


def main() -> None:
    """Train the parts and write the network."""
    config, teacher, out = load_config(Path(sys.argv[1])), Teacher(Path(sys.argv[2])), Path(sys.argv[3])
    batches = int(sys.argv[4]) if len(sys.argv) > 4 else BATCHES
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    contract = Contract(model=config.model)
    of_network = ModelConfig(config.model, input_size=config.input_size, fused=True)
    model = build_model(of_network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert isinstance(model, MultiScaleNet)  # noqa: S101 - tells the type checker
    run, loss_of = Run(model, stages_of(model, batches), []), LandmarkLoss(config.loss, config.input_size, contract)
    if out.is_file():
        run.resume(load_checkpoint(out))
    faces = batches_from(run.done, open_cache(config, Path("runs/cache"), contract), contract, config)
    recent: list[list[float]] = []
    with Progress() as progress:
        task = progress.add_task("hints", total=batches, completed=run.done)
        for batch in islice(faces, batches - run.done):
            recent.append(run.learn(batch, teacher, loss_of))
            progress.advance(task)
            if run.done % 1000 == 0 or run.done == batches:
                means = np.mean(recent, axis=0)
                shown = " ".join(f"{mean:.4f}" if math.isfinite(mean) else "-" for mean in means)
                progress.console.print(run.done, shown)
                recent.clear()
                save_checkpoint(out, run.checkpoint(of_network, contract))


if __name__ == "__main__":
    main()
