"""Fits the last layers of a trained network to fixed features: by least squares, then by the loss of the training.

    python train/recipes/last_layers.py CONFIG CHECKPOINT OUT [FACES] [--faceless WIDER]

CONFIG is the configuration of the training. What the last layers read is computed once for FACES augmented training
faces, which they then see many times. Networks with a `Refinement` get a new one, others a correction of their last
linear layer; all other layers stay as they are. Variances are also learned from turned faces and, with a folder of
WIDER FACE (``images``, ``boxes.csv``), from boxes without a face. OUT's folder holds the faces' crops (``cache``), as a
run's folder.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from pfld_edge_calib import read_photo
from pfld_edge_calib.find_landmarks import overlaps
from pfld_edge_runtime import Contract, PfldEdgeError, open_detector
from pfld_edge_runtime.arrays import Uint8Array
from pfld_edge_runtime.crop import contract_crops
from pfld_edge_runtime.detection.detector import find_boxes
from pfld_edge_train.batches import Batch, epoch_order, prefetched, training_batches, validation_batches
from pfld_edge_train.checkpoint import load_model, save_checkpoint
from pfld_edge_train.config import AugmentConfig, TrainConfig, load_config
from pfld_edge_train.dense_loss import DenseLandmarkLoss, face_sizes
from pfld_edge_train.engine import mean_error
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.face_cache import open_cache
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.models import LandmarkNet
from pfld_edge_train.models.edge import PFLDEdge, map_log_variances

EPOCHS, BATCH, RATE = 20, 256, 2e-3
STRENGTH = 0.5
"""Of the training's augmentation: least squares are ruled by the worst faces."""
PLACE_NOISE, FEATURE_NOISE = 1e-3, 0.17
"""Noise of places, fractions of the crop (8 bits make as much), and of features, shares of their deviation."""
TURNED, FACELESS = 0.05, 0.05
"""Shares of faces that are turned by quarter circles, and of crops without a face."""
MOST_SHARED = 0.05
"""Of a box without a face: largest area shared with a face, as a share of the smaller one of both."""


def deviations(inputs: Tensor) -> Tensor:
    """Standard deviations ``(D,)``, at least a hundredth of their mean: some features are 0 for nearly all faces."""
    found = inputs.std(0)
    return found.clamp_min(0.01 * float(found.mean()))


class Correction(nn.Module):
    """A fixed linear layer, and one that learns beside it, on standardized inputs and with outputs in units of `scale`.

    One learning rate then suits all layers. `inputs` are examples, ``(N, D)``.
    """

    def __init__(self, layer: nn.Linear, inputs: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.layer, self.more, self.scale = layer, nn.Linear(layer.in_features, layer.out_features), scale
        self.mean, self.std = inputs.mean(0), deviations(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., D)`` to the sum of both layers."""
        return torch.add(self.layer(x), self.more((x - self.mean) / self.std) * self.scale)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The fixed layer, with what was learned added to its weights."""
        weight = self.more.weight * self.scale[..., None] / self.std
        self.layer.weight.add_(weight)
        self.layer.bias.add_(self.more.bias * self.scale - weight @ self.mean)
        return self.layer


@torch.no_grad()
def inputs_of(layer: nn.Module, run: Callable[[], object]) -> Tensor:
    """What a layer reads when `run` calls it, ``(N, D)``."""
    seen: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, -2))):
        run()
    return seen[0]


@torch.no_grad()
def features_of(network: LandmarkNet, faces: Tensor) -> Tensor:
    """What the last layers read of faces, ``(N, D)``: of heat maps 2 P mean places and P logarithms of variances."""
    if isinstance(network, PFLDEdge):
        found = network.logits(faces).softmax(2) @ network.fc.cell_values()
        return torch.cat([found[..., :2].flatten(1), map_log_variances(found)], 1)
    return inputs_of(network.get_submodule("fc"), lambda: network(faces))


def outputs_of(network: LandmarkNet, features: Tensor, noise: float = 0.0) -> tuple[Tensor, ...]:
    """Landmarks ``(N, P, 2)`` and, of heat maps whose places have `noise`, their log variances ``(N, P)``."""
    if not isinstance(network, PFLDEdge):
        return (network.get_submodule("fc")(features).unflatten(1, (-1, 2)),)
    places, log_variances = features.tensor_split([2 * network.fc.num_landmarks], 1)
    landmarks, log_variances = network.fc.refined(places + noise * torch.randn_like(places), log_variances)
    return landmarks.unflatten(1, (-1, 2)), log_variances


def least_squares(inputs: Tensor, wanted: Tensor, shares: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear layer of least squared error where inputs ``(N, D)`` have noise ``(D,)``.

    Ridge regression, the bias free; each face counts by its share ``(N,)``. In float64, for inputs are correlated.
    """
    shares = (shares / shares.sum()).double()
    x, y = inputs.double(), wanted.double()
    x_mean, y_mean = shares @ x, shares @ y
    x = x - x_mean
    weighted = (x * shares[:, None]).T
    weight = torch.linalg.solve(weighted @ x + noise.double().square().diag(), weighted @ (y - y_mean)).T
    return weight.float(), (y_mean - weight @ x_mean).float()


def corrections(
    network: LandmarkNet, batch: Batch, usual: Tensor, contract: Contract
) -> tuple[nn.Module, dict[str, Correction]]:
    """Improve the first of the last layers by least squares; put a `Correction` of each into the module that has them.

    An old refinement is forgotten. `usual` ``(N,)`` are the faces whose landmarks are learned.
    """
    owner: nn.Module = network
    scales = {"fc": torch.tensor(0.0125)}  # of more inputs than `shape` has
    if refined := isinstance(network, PFLDEdge):
        owner, points = network.get_submodule("fc.refinement"), contract.landmarks.num_landmarks
        owner.shape = nn.Linear(2 * points, 2 * points)
        of_out = torch.cat([torch.full((2 * points,), 0.03), torch.ones(points)])
        scales = {"shape": torch.tensor(0.03), "hidden": torch.tensor(1.0), "out": of_out}
        for value in owner.requires_grad_(False).parameters():
            nn.init.zeros_(value)
    layers: dict[str, Correction] = {}
    for name, scale in scales.items():
        layer: Any = owner.get_submodule(name)
        inputs = inputs_of(layer, lambda: outputs_of(network, batch.faces))
        if not layers:
            wanted = (batch.landmarks - outputs_of(network, batch.faces)[0]) * (batch.weights[..., None] > 0)
            sizes = face_sizes(batch.landmarks, contract.landmarks.normalizing_points)
            noise = torch.full_like(inputs[0], PLACE_NOISE) if refined else FEATURE_NOISE * deviations(inputs)
            weight, bias = least_squares(
                inputs, wanted.flatten(1), usual * batch.weights.mean(1) / sizes.square(), noise
            )
            layer.weight += weight
            layer.bias += bias
        layers[name] = Correction(layer, inputs, scale)
        if name != "hidden":  # before a ReLU weights must differ
            nn.init.zeros_(layers[name].more.weight)
            nn.init.zeros_(layers[name].more.bias)
        setattr(owner, name, layers[name])
    return owner, layers


def loss_on_features(network: LandmarkNet, config: TrainConfig, contract: Contract) -> Callable[..., Tensor]:
    """The training's loss on `outputs_of`, without weights of pose and attributes, which are for whole networks."""
    if isinstance(network, PFLDEdge) or config.loss.kind == "dense":
        return DenseLandmarkLoss(config.loss, contract, network).of_landmarks
    plain = replace(config.loss, pose_weight="none", auxiliary_weight=0.0, attribute_weight="none")
    return LandmarkLoss(plain, config.input_size, contract)


def fit(network: LandmarkNet, batch: Batch, usual: Tensor, config: TrainConfig, contract: Contract) -> None:
    """Fit the last layers to the landmarks of a batch, which has features in place of faces; see `with_others`."""
    loss_of = loss_on_features(network, config, contract)
    owner, layers = corrections(network.requires_grad_(False), batch, usual, contract)
    optimizer = torch.optim.AdamW([value for layer in layers.values() for value in layer.more.parameters()], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * math.ceil(len(usual) / BATCH))
    for _ in track(range(EPOCHS), "last layers"):
        for rows in torch.randperm(len(usual)).split(BATCH):  # type: ignore[no-untyped-call]
            some = Batch(*(getattr(batch, field.name)[rows] for field in fields(batch)))
            optimizer.zero_grad()
            of_variances = {"usual": usual[rows]} if isinstance(network, PFLDEdge) else {}
            loss = loss_of(*outputs_of(network, some.faces, PLACE_NOISE), some, **of_variances)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    for name, layer in layers.items():
        setattr(owner, name, layer.folded())
    if isinstance(network, PFLDEdge):
        finish(owner)


@torch.no_grad()
def finish(refinement: Any) -> None:  # noqa: ANN401 - layers are attributes that torch's types don't know
    """Move the linear layer's bias to the output's; round weights to what half precision holds, with 8 bits at most."""
    refinement.out.bias[: len(refinement.shape.bias)] += refinement.shape.bias
    refinement.shape.register_parameter("bias", None)
    for layer in (refinement.shape, refinement.hidden, refinement.out):
        layer.weight.copy_(layer.weight.bfloat16().half())


def faceless_crops(folder: Path, contract: Contract) -> Uint8Array:
    """Crops ``(M, S, S, 3)`` of WIDER FACE without a face: two random boxes of a photograph, and false detections."""
    if not (folder / "boxes.csv").is_file():
        raise TrainConfigError(
            f"{folder}: no boxes.csv; --faceless takes WIDER FACE's folder, with images and boxes.csv"
        )
    known = defaultdict(list)
    with (folder / "boxes.csv").open(encoding="utf-8") as file:
        for name, *numbers in islice(csv.reader(file), 1, None):
            known[name].append([float(number) for number in numbers[:4]])
    random, detector, crops = np.random.default_rng(0), open_detector(), []
    for name, listed in track(known.items(), "boxes without a face"):
        photo, faces = read_photo(folder / "images" / name), np.array(listed)
        size = np.array(photo.shape[1::-1])
        sides = size.min() * np.exp(random.uniform(-2.5, -0.2, (16, 1)))
        corners = random.random((16, 2)) * (size - sides)
        boxes = [np.concatenate([corners, corners + sides], 1), find_boxes(detector, photo, "bgr")[0]]
        shared = [overlaps(some[:, None], faces, of_smaller=True).max(1, initial=0) for some in boxes]
        boxes = [some[share < MOST_SHARED] for some, share in zip(boxes, shared, strict=True)]
        crops.append(contract_crops(photo, np.concatenate([boxes[0][:2], boxes[1]]), contract, "bgr")[1])
    return np.concatenate(crops)


def with_others(batch: Batch, faceless: Uint8Array, contract: Contract) -> tuple[Batch, Tensor]:
    """Turn some faces of a batch, and replace some by crops without a face; tell which ones stayed, ``(N,)``.

    The landmarks of crops without a face lie in their corner, away from all predictions. The batch is changed.
    """
    shares = torch.tensor([TURNED / 3] * 3 + [FACELESS * (len(faceless) > 0)])
    kinds = torch.multinomial(torch.cat([1 - shares.sum(0, keepdim=True), shares]), len(batch.faces), replacement=True)
    for quarters in (1, 2, 3):
        rows = kinds == quarters
        batch.faces[rows] = torch.rot90(batch.faces[rows], quarters, (2, 3))
        x, y = batch.landmarks[rows].unbind(2)
        batch.landmarks[rows] = torch.stack([(y, 1 - x), (1 - x, 1 - y), (1 - y, x)][quarters - 1], 2)
    rows = kinds == 4
    chosen = torch.randint(max(len(faceless), 1), (int(rows.sum()),)).numpy()
    crops = (faceless[chosen] - np.array(contract.mean, np.float32)) / np.array(contract.scale, np.float32)
    batch.faces[rows] = torch.from_numpy(crops).permute(0, 3, 1, 2)
    batch.landmarks[rows], batch.weights[rows] = 0.0, 1.0
    return batch, (kinds == 0).float()


def weakened(augment: AugmentConfig) -> AugmentConfig:
    """The augmentation in `STRENGTH`."""
    parts = {field.name: getattr(augment, field.name) for field in fields(augment)}
    kept = {name: parts.pop(name) for name in ("flip", "antialias")}
    return AugmentConfig(**{name: STRENGTH * value for name, value in parts.items()}, **kept)


def refit(config: TrainConfig, path: Path, out: Path, faces: int, faceless: Path | None) -> None:
    """Fit the last layers of a checkpoint; write the network."""
    network, checkpoint = load_model(path)
    kind, last = checkpoint.model.kind, dict(network.named_modules())
    if kind != config.model:
        raise TrainConfigError(f"{path} holds {kind}, the configuration trains {config.model}")
    if "fc.refinement" not in last and not isinstance(last["fc"], nn.Linear):
        raise TrainConfigError(f"{path}: {kind} has neither a refinement nor a last linear layer to fit")
    contract = Contract.from_dict(checkpoint.contract) if checkpoint.contract else Contract(model=kind)
    cache, size = open_cache(config, out.parent / "cache", contract), config.batch_size
    if len(epoch_order(cache, config.seed, 0)) < size or not cache.held_out.any():
        raise TrainConfigError("too few faces: not one full batch to train on and one face to validate on")
    held_out = validation_batches(cache, contract, size)
    before = mean_error(network, held_out, contract.landmarks.normalizing_points)
    torch.manual_seed(config.seed)
    others = np.empty((0, *(contract.input_size,) * 2, 3), np.uint8)
    if faceless is not None:
        others = faceless_crops(faceless, contract)
    # Epochs after the training's have other random numbers.
    augment, epochs = weakened(config.augment), count(config.epochs)
    batches = (prefetched(training_batches(cache, contract, augment, size, config.seed, epoch)) for epoch in epochs)
    number, read = math.ceil(faces / size), []
    for batch in track(islice(chain.from_iterable(batches), number), "faces", total=number):
        usual = torch.ones(len(batch.faces))
        if isinstance(network, PFLDEdge):
            batch, usual = with_others(batch, others, contract)
        read.append((replace(batch, faces=features_of(network, batch.faces)), usual))
    whole = Batch(*(torch.cat([getattr(some, field.name) for some, _ in read]) for field in fields(Batch)))
    fit(network, whole, torch.cat([usual for _, usual in read]), config, contract)
    nme = mean_error(network, held_out, contract.landmarks.normalizing_points)
    click.echo(f"NME on {int(cache.held_out.sum())} validation faces: {before:.5f} before, {nme:.5f} after")
    contract = contract.replace(nme=round(nme, 6), nme_data="validation split of the training faces")
    fitted = replace(checkpoint, weights=network.state_dict(), ema_weights=None, optimizer=None, auxiliary=None)
    save_checkpoint(out, replace(fitted, contract=contract.to_dict()))


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("faces", type=click.IntRange(1), default=96_000)
@click.option("--faceless", type=click.Path(path_type=Path), help="Folder of WIDER FACE, for boxes without a face.")
def main(config: Path, checkpoint: Path, out: Path, faces: int, faceless: Path | None) -> None:
    """Fit the last layers of a checkpoint; write the network."""
    try:
        refit(load_config(config), checkpoint, out, faces, faceless)
    except PfldEdgeError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
