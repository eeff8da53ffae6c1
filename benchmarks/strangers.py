"""Trains networks of timm on 68 true points for some minutes, converts them, and measures what INT8 cost.

    pip install timm torchvision
    PFLD_EDGE_SHARED=<folder> python benchmarks/strangers.py --minutes 10 --folder runs/strangers

Helen's 330 test faces judge, in `pfld-edge verify` and `bench`, called as a user would; training and calibration use
the other faces of Helen and AFW. A network that is in the folder is not trained again.
"""

import csv
import math
from pathlib import Path
from time import monotonic

import click
import cv2
import numpy as np
import torch
from rich.progress import Progress, TextColumn
from torch import Tensor, nn

from harness import shared_folder
from pfld_edge.cli import run
from pfld_edge_runtime.arrays import Float64Array, Uint8Array
from pfld_edge_train.learner import Muon
from zoo import HEAT_MAPS, SIDE, export, network

POINTS = 68
NETWORKS = "mobilenetv3_small_100", "mobilenetv2_100", "resnet18"
JUDGES = "helen_test"
"""Beginning of the names of the photographs that judge."""
BATCH, RATE, WARMUP = 32, 2e-3, 100
OPTIONS = ["--color", "rgb", "--mean", "0", "--scale", "255", "--crop-margin", "1.2", "--landmarks", "ibug-68"]

Face = tuple[Uint8Array, Float64Array]


def split(folder: Path, target: Path) -> tuple[Path, Path]:
    """Write the faces that train and calibrate, and those that judge, as two CSV files."""
    with (folder / "points.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    paths = target / "train.csv", target / "test.csv"
    for path, judges in zip(paths, (False, True), strict=True):
        with path.open("w", encoding="utf-8", newline="") as file:
            kept = [row for row in rows if row[0].startswith(JUDGES) == judges]
            csv.writer(file).writerows([head[: 1 + 2 * POINTS], *(row[: 1 + 2 * POINTS] for row in kept)])
    return paths


def read_faces(labels: Path, images: Path) -> list[Face]:
    """RGB photographs and points ``(68, 2)`` in their pixels."""
    with labels.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    names, points = [row[0] for row in rows], np.array([row[1:] for row in rows], float).reshape(len(rows), POINTS, 2)
    photos = [cv2.cvtColor(cv2.imread(str(images / name)), cv2.COLOR_BGR2RGB) for name in names]
    return [(photo.astype(np.uint8), own) for photo, own in zip(photos, points, strict=True)]


def draw(faces: list[Face], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A batch of crops ``(N, 3, S, S)`` in 0..1, moved, turned and lit at random, and points ``(N, 68, 2)`` in 0..1."""
    crops, targets = [], []
    for index in rng.integers(len(faces), size=BATCH):
        photo, points = faces[index]
        low, high = points.min(0), points.max(0)
        side = (high - low).max() * 1.2 * math.exp(rng.normal(0, 0.07))
        center = (low + high) / 2 + rng.normal(0, 0.04, 2) * side
        turn = cv2.getRotationMatrix2D(center.tolist(), rng.normal(0, 12), SIDE / side)
        turn[:, 2] += SIDE / 2 - center
        crop = cv2.warpAffine(photo, turn, (SIDE, SIDE)).astype(np.float32)
        crops.append(np.clip(crop * math.exp(rng.normal(0, 0.2)) + rng.normal(0, 15), 0, 255) / 255)
        targets.append((points @ turn[:, :2].T + turn[:, 2]) / SIDE)
    batch = torch.from_numpy(np.stack(crops).astype(np.float32)).permute(0, 3, 1, 2)
    return batch.contiguous(memory_format=torch.channels_last), torch.from_numpy(np.stack(targets)).float()


def loss_of(found: Tensor, points: Tensor) -> Tensor:
    """L1 of coordinates; of heat maps the cross entropy, the target split bilinearly over the four nearest places."""
    if found.ndim == 2:
        return (found.view_as(points) - points).abs().mean()
    places = [
        torch.arange(size) + 0.5 - points[..., axis, None] * size for axis, size in ((1, SIDE // 8), (0, SIDE // 8))
    ]
    rows, columns = ((1 - place.abs()).clamp(min=0) for place in places)
    target = (rows[..., :, None] * columns[..., None, :]).flatten(2)
    return -(target * found.flatten(2).log_softmax(-1)).sum(-1).mean()


def train(name: str, faces: list[Face], minutes: float) -> nn.Module:
    """Train from random weights with Muon, its rate half a cosine over the minutes."""
    model = network(name, POINTS).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    *_, last = (layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d)))
    nn.init.normal_(last.weight, std=0.01)
    nn.init.constant_(last.bias, 0.0 if name in HEAT_MAPS else 0.5)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.05
    optimizer = Muon([{"params": list(model.parameters()), "weight_decay": 0.02}], RATE, outputs=last.parameters())
    rng, start, step = np.random.default_rng(0), monotonic(), 0
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[loss]:.4f}")) as progress:
        task = progress.add_task(name, total=60 * minutes, loss=math.nan)
        while (taken := monotonic() - start) < 60 * minutes:
            step += 1
            rate = RATE * min(1, step / WARMUP) * (1 + math.cos(math.pi * taken / (60 * minutes))) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            crops, points = draw(faces, rng)
            loss = loss_of(model(crops), points)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.update(task, completed=taken, loss=float(loss.detach()))
    click.echo(f"{name}: {step * BATCH:,} faces in {minutes:g} minutes, last loss {float(loss.detach()):.4f}")
    return model.eval()


@click.command()
@click.argument("names", nargs=-1)
@click.option("--minutes", default=10.0, show_default=True, help="Of training, each.")
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="For networks and results.")
def strangers(names: tuple[str, ...], minutes: float, folder: Path) -> None:
    """Train, convert and verify NAMES of timm, or MobileNetV3 with SE, MobileNetV2, and ResNet18 with heat maps."""
    data = shared_folder() / "data" / "helen_afw"
    folder.mkdir(parents=True, exist_ok=True)
    images = ["--images", data / "images"]
    learned, judges = split(data, folder)
    for name in names or NETWORKS:
        path = folder / f"{name}.onnx"
        if not path.exists():
            export(train(name, read_faces(learned, data / "images"), minutes), path, dynamo=False)
        fp32, int8 = path.with_suffix(".edge.onnx"), path.with_suffix(".edge.int8.onnx")
        for command in (
            ["convert", path, "-o", fp32, "--int8", *OPTIONS, "--calibration", learned, *images, "--allow-slower"],
            ["verify", "--reference", fp32, int8, "--data", judges, *images, "--json", path.with_suffix(".json")],
            ["bench", fp32, int8],
        ):
            click.echo(f"\npfld-edge {' '.join(map(str, command))}")
            run([str(word) for word in command])


if __name__ == "__main__":
    strangers()
