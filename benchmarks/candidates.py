"""Compares bodies and heads for our own networks: multiplications, time in float and INT8, accuracy after short runs.

    python benchmarks/candidates.py train --config train/configs/pfld-edge-s-turned.toml --steps 4000 [NAME...]
    python benchmarks/candidates.py time --reference PFLD_GhostOne_112_1_opt_sim.onnx [NAME...]
    python benchmarks/candidates.py table

`train` gives every candidate the same faces, in the same order, from random weights of the same seed, and measures on
the configuration's own validation faces, never on a test list. `time` needs an idle machine. Both add to OUT, and leave
out what is there already.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from types import MappingProxyType

import click
import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from pfld_edge_convert.benchmark.turns import take_turns
from pfld_edge_convert.calibration_batches import FaceSource, calibration_crops, proof_crops
from pfld_edge_convert.int8_stage import Int8Request
from pfld_edge_convert.network import open_network
from pfld_edge_convert.pipeline import convert, int8_path
from pfld_edge_runtime import Contract, PfldEdgeError, fingerprint_image
from pfld_edge_train.batches import epoch_order, training_batches, validation_batches
from pfld_edge_train.blocks import MobileOneBlock
from pfld_edge_train.config import TrainConfig, load_config
from pfld_edge_train.engine import train_step
from pfld_edge_train.face_cache import open_cache
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.models import LandmarkNet, ModelConfig, build_model
from pfld_edge_train.models.heat_maps import cell_places, mean_places
from pfld_edge_train.prefetch import prefetched
from pfld_edge_train.processes import Processes
from pfld_edge_train.trainee import make_trainee
from pfld_edge_train.validation import mean_error

OUT = Path("runs/candidates.json")


@dataclass(frozen=True)
class Candidate:
    """A network in a few numbers.

    Attributes:
        stages: Channels of the stem (stride 2), then of each block; a stage's first block halves the map.
        kind: ``plain`` 3x3, ``separable`` (depthwise 3x3, then 1x1), or ``branched`` (plain with the 1x1 and identity
            branches of MobileOne, which cost nothing at inference).
        head: Channels that keep their place on the last map, before the linear layer; 0: the map's soft-argmax, one
            heat map a landmark, from the stage before the last.
    """

    stages: tuple[tuple[int, int], ...]
    kind: str = "plain"
    head: int = 16


CANDIDATES = {
    "s": Candidate(((16, 1), (32, 2), (64, 2), (128, 3))),
    "s-branched": Candidate(((16, 1), (32, 2), (64, 2), (128, 3)), "branched"),
    "s-96": Candidate(((16, 1), (32, 2), (64, 3), (96, 3))),
    "s-late": Candidate(((16, 1), (32, 1), (64, 2), (128, 4))),
    "s-head32": Candidate(((16, 1), (32, 2), (64, 2), (128, 3)), head=32),
    "s-softargmax": Candidate(((16, 1), (32, 2), (64, 3), (128, 2)), head=0),
    "separable": Candidate(((32, 1), (64, 2), (128, 4), (256, 4)), "separable"),
    "m-linear": Candidate(((32, 1), (48, 2), (96, 2), (192, 3))),
    "m-deep": Candidate(((16, 1), (32, 3), (64, 5), (128, 6)), "branched"),
    "m-stem32": Candidate(((32, 1), (32, 2), (64, 4), (128, 6)), "branched"),
}


class CandidateNet(LandmarkNet):
    """Faces ``(N, 3, S, S)`` to landmarks ``(N, 2 * 98)``, fractions of the crop."""

    def __init__(self, candidate: Candidate, input_size: int = 112, landmarks: int = 98) -> None:
        """Build the network with random weights."""
        super().__init__()
        layers: list[nn.Module] = []
        channels, ends = 3, []
        for width, depth in candidate.stages:
            for i in range(depth):
                layers.append(_block(candidate.kind if channels > 3 else "plain", channels, width, 2 if i == 0 else 1))
                channels = width
            ends.append(len(layers))
        self.blocks = nn.Sequential(*layers)
        self.fine = ends[-2]
        self.feature_channels = candidate.stages[-2][0]
        side = input_size // 2 ** len(candidate.stages)
        if candidate.head:
            self.head = MobileOneBlock(channels, candidate.head, 1, side_branches=False)
            self.fc: nn.Linear | None = nn.Linear(candidate.head * side**2, 2 * landmarks)
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.constant_(self.fc.bias, 0.5)
        else:
            self.fc = None
            self.coarse = nn.Conv2d(channels, landmarks, 1)
            self.heat = nn.Conv2d(candidate.stages[-2][0], landmarks, 1)
            self.register_buffer("grid", cell_places(2 * side))

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, 3, S, S)`` to landmarks; no candidate is trained with an auxiliary network."""
        fine = self.blocks[: self.fine](x)
        coarse = self.blocks[self.fine :](fine)
        if self.fc is not None:
            return self.fc(self.head(coarse).flatten(1)), fine
        coarse = self.coarse(coarse)
        heat = self.heat(fine) + nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        assert isinstance(self.grid, Tensor)  # noqa: S101 - tells the type checker
        return mean_places(heat, self.grid), fine


def _block(kind: str, channels: int, width: int, stride: int) -> nn.Module:
    if kind == "separable":
        return nn.Sequential(
            MobileOneBlock(channels, channels, 3, stride, groups=channels, side_branches=False),
            MobileOneBlock(channels, width, 1, side_branches=False),
        )
    return MobileOneBlock(channels, width, 3, stride, side_branches=kind == "branched")


NETWORKS: Mapping[str, Callable[[int], LandmarkNet]] = MappingProxyType(
    {
        **{name: partial(CandidateNet, candidate) for name, candidate in CANDIDATES.items()},
        "m": lambda size: build_model(ModelConfig("pfld-edge-m", input_size=size)),
    }
)
"""Builders from the input's size."""


@click.group()
@click.option("--out", type=click.Path(path_type=Path), default=OUT, show_default=True, help="JSON of all results.")
@click.pass_context
def main(context: click.Context, out: Path) -> None:
    """Compare candidates for pfld-edge-s and pfld-edge-m."""
    context.obj = out


@main.command("train")
@click.argument("names", nargs=-1)
@click.option("--config", "config_path", required=True, type=click.Path(path_type=Path), help="A run's TOML file.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("runs/cache"), help="Folder of cut faces.")
@click.option("--steps", type=click.IntRange(10), default=4000, show_default=True, help="Batches for each.")
@click.pass_obj
def train_command(out: Path, names: tuple[str, ...], config_path: Path, cache: Path, steps: int) -> None:
    """Train every candidate shortly; NAMES chooses some."""
    config = load_config(config_path)
    contract = Contract(input_size=config.input_size)
    faces = open_cache(config, cache, contract)
    a_epoch = len(epoch_order(faces, config.seed, 0)) // config.batch_size
    here = Processes(torch.device("cpu"))
    loss_of = LandmarkLoss(config.loss, config.input_size, contract)
    for name in names or tuple(NETWORKS):
        if "nme" in _read(out).get(name, {}):
            continue
        torch.manual_seed(config.seed)
        # The schedule's length is the run's: as many of its epochs as the steps need, the last one cut.
        scheduled = _shortened(config, steps, a_epoch)
        trainee = make_trainee(NETWORKS[name](config.input_size), config, here)
        done, losses = 0, [0.0]
        for epoch in range(-(-steps // a_epoch)):
            count = min(a_epoch, steps - done)
            batches = training_batches(faces, contract, config.augment, config.batch_size, config.seed, epoch)
            losses = []
            trainee.runner.train()
            for batch, _ in zip(prefetched(batches), range(count), strict=False):
                losses.append(float(train_step(trainee, batch, loss_of, scheduled, a_epoch, here)[0]))
            done += count
        held_out = validation_batches(faces, contract, config.batch_size)
        nme = mean_error(trainee.average, held_out, contract.landmarks.normalizing_points)
        _add(out, name, {"nme": nme, "loss": mean(losses), "steps": steps})
        click.echo(f"{name}: {nme:.5f}")


def _shortened(config: TrainConfig, steps: int, a_epoch: int) -> TrainConfig:
    # A schedule may end within an epoch; the configuration's own type knows whole epochs alone.
    return replace(config, epochs=max(1.0, steps / a_epoch))  # type: ignore[arg-type]


@main.command("time")
@click.argument("names", nargs=-1)
@click.option("--reference", required=True, type=click.Path(path_type=Path), help="ONNX file to divide by.")
@click.option("--rounds", type=click.IntRange(1), default=200, show_default=True, help="Timed calls of each.")
@click.pass_obj
def time_command(out: Path, names: tuple[str, ...], reference: Path, rounds: int) -> None:
    """Convert every candidate with random weights and time it against a reference, in one run, on one thread."""
    calls: dict[str, Callable[[], object]] = {"reference": _call(reference)}
    chosen = names or tuple(NETWORKS)
    contract = Contract()
    faces = calibration_crops(FaceSource(), contract)
    with TemporaryDirectory() as folder:
        for name in track(chosen, description="converting"):
            torch.manual_seed(0)
            path = Path(folder) / f"{name}.onnx"
            request = Int8Request(faces.crops[:32], "timing", allow_slower=True)
            model = NETWORKS[name](contract.input_size).eval()
            try:
                report = convert(model, contract, path, proof_crops(contract), request)
            except PfldEdgeError as error:
                click.echo(f"{name}: no INT8 ({error})", err=True)
                report = convert(model, contract, path, proof_crops(contract))
            _add(out, name, {"macs": report.files[0].macs, "parameters": report.files[0].parameters})
            calls[f"{name}/fp32"] = _call(path)
            if int8_path(path).is_file():
                calls[f"{name}/int8"] = _call(int8_path(path))
        times = {key: median(values.tolist()) for key, values in take_turns(calls, rounds).items()}
    for key, milliseconds in times.items():
        if key != "reference":
            name, _, form = key.partition("/")
            _add(out, name, {form: milliseconds, f"{form} speedup": times["reference"] / milliseconds})
    _add(out, "reference", {"fp32": times["reference"]})


def _call(path: Path) -> Callable[[], object]:
    network = open_network(path, 1)
    crop = fingerprint_image(1, network.contract.input_size)[None]
    return lambda: network.predict(crop)


@main.command("table")
@click.pass_obj
def table_command(out: Path) -> None:
    """Print what is known as a Markdown table."""
    click.echo("| candidate | MACs | parameters | fp32 | INT8 | validation NME |\n|---|---|---|---|---|---|")
    for name, row in _read(out).items():
        if name in NETWORKS:
            speeds = [
                f"{row[f'{form} speedup']:.2f} x" if f"{form} speedup" in row else "" for form in ("fp32", "int8")
            ]
            nme = f"{row['nme']:.4f}" if "nme" in row else ""
            cells = [f"{row.get('macs', np.nan) / 1e6:.0f} M", f"{row.get('parameters', np.nan) / 1e6:.2f} M", *speeds]
            click.echo(f"| {name} | {' | '.join(cells)} | {nme} |")


def _read(out: Path) -> dict[str, dict[str, float]]:
    return json.loads(out.read_text()) if out.is_file() else {}


def _add(out: Path, name: str, values: dict[str, float]) -> None:
    found = _read(out)
    found[name] = found.get(name, {}) | values
    partial = out.with_suffix(".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(out)


if __name__ == "__main__":
    sys.exit(main())
