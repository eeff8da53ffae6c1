"""The runtime's face detector: pseudo-labels, training, evaluation, fp32 ONNX file. `detector_export.py` makes it INT8.

    python train/recipes/face_detector.py label scrfd_2.5g_kps.onnx FOLDER... -o labels/wider.npz
    python train/recipes/face_detector.py train WIDER labels --teacher yunet.onnx --minutes 150 -o run
    python train/recipes/face_detector.py evaluate run/last.pt WIDER
    python train/recipes/face_detector.py export run/last.pt -o detector.onnx

WIDER is a folder with ``images/`` and ``boxes.csv``. An interrupted training goes on with the same command. The network
is anchor-free: maps of strides 8, 16 and 32 with 11 channels, one prediction a cell, as in YuNet (Wu et al., "YuNet: A
Tiny Millisecond-level Face Detector", MIR 2023), with one score in place of class and objectness:

====== ==========================================================================================
0      score, logit
1, 2   box centre minus cell centre, in strides (x, y)
3, 4   log of the box's width and height, in strides
5..10  left eye, right eye, mouth centre (left and right in the upright image), each minus the cell centre, in strides
====== ==========================================================================================

The cell centre is ``(column + 0.5, row + 0.5) * stride``. Input: BGR ``(p - 128) / 128``, ``(N, 3, H, W)``, H and W
multiples of 32.
"""

import copy
import csv
import math
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import cv2
import numpy as np
import torch
from face_detector_photos import (
    Augmenter,
    Photo,
    label_photos,
    read_pseudo_labelled,
    read_teacher,
    read_wider,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

from pfld_edge_calib.files import replacing
from pfld_edge_calib.find_landmarks import overlaps
from pfld_edge_runtime.arrays import BoolArray, Float32Array, Uint8Array
from pfld_edge_runtime.detection.onnx_detector import non_maximum_suppression
from pfld_edge_runtime.session import open_session

STRIDES = (8, 16, 32)
CHANNELS = 11
MEAN, SCALE = 128.0, 128.0
SIDE_IN_USE = 320

# A stem of one 6x6 convolution with a stride of 4 is one matrix product: in INT8 several times cheaper than two strided
# 3x3 convolutions of 3 and 16 channels.
_STEM, _NECK = 24, 32
_STAGES = ((32, 3), (64, 3), (64, 2))
"""Width and convolutions of the stages, whose first convolutions have a stride of 2."""

_PSEUDO_LABELLED = {"wflw": (800, 0.16), "helen_afw": (256, 0.06), "aflw2000": (256, 0.05), "lfw": (256, 0.06)}
"""Groups beside WIDER, which has the rest of the samples: longest side kept, and share."""
_BATCH, _SIDE = 8, 256
_RATE, _WARMUP, _DECAY, _EMA = 2e-3, 200, 0.02, 0.999
_EVALUATE_MINUTES = 15.0

_SMALLEST, _LARGEST = torch.tensor([0.0, 24.0, 64.0]), torch.tensor([64.0, 150.0, 1e9])
"""Face sizes (square root of the area, pixels) that each stride may take: neighbours overlap."""
_RADIUS, _MOST_CELLS = 1.5, 9

LEAST_SHARE = 32 / 1024
"""Faces of 32 px count in a photograph whose longer side is 1024 px."""
_HIT, _NMS = 0.4, 0.45


class ConvBlock(nn.Sequential):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int | None = None) -> None:
        padding = kernel // 2 if padding is None else padding
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs, momentum=0.03), nn.ReLU(inplace=True))


class FaceDetectorNet(nn.Module):
    """Backbone, top-down feature pyramid, one head a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(3, _STEM, kernel=6, stride=4, padding=1)
        stages, inputs = [], _STEM
        for width, depth in _STAGES:
            blocks = [ConvBlock(inputs, width, stride=2), *(ConvBlock(width, width) for _ in range(depth - 1))]
            stages.append(nn.Sequential(*blocks))
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList(ConvBlock(width, _NECK, kernel=1) for width, _ in _STAGES)
        self.heads = nn.ModuleList(ConvBlock(_NECK, _NECK) for _ in STRIDES)
        self.outputs = nn.ModuleList(nn.Conv2d(_NECK, CHANNELS, 1) for _ in STRIDES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for output in self.outputs:
            nn.init.normal_(output.get_parameter("weight"), std=0.01)
            # Few cells hold a face: a low first score keeps the first losses small (Lin et al., 2017, section 4.1).
            output.get_parameter("bias").data = torch.tensor([-4.6, 0.0, 0.0, 0.7, 0.7] + [0.0] * 6)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict ``(N, 11, H / s, W / s)`` for the strides 8, 16 and 32."""
        features, x = [], self.stem(image)
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            features.append(lateral(x))
        p8, p16, p32 = features
        p16 = p16 + functional.interpolate(p32, scale_factor=2.0, mode="nearest")
        p8 = p8 + functional.interpolate(p16, scale_factor=2.0, mode="nearest")
        m8, m16, m32 = (
            output(head(p)) for output, head, p in zip(self.outputs, self.heads, (p8, p16, p32), strict=True)
        )
        return m8, m16, m32


def cell_grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Cell centres ``(P, 2)`` in pixels and strides ``(P,)`` of all cells, finest map first, row by row."""
    centers, strides = [], []
    for stride in STRIDES:
        rows, columns = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        centers.append((torch.stack([columns, rows], -1).reshape(-1, 2) + 0.5) * stride)
        strides.append(torch.full((len(centers[-1]),), float(stride)))
    return torch.cat(centers), torch.cat(strides)


def flatten_maps(maps: tuple[Tensor, ...]) -> Tensor:
    """Join the maps to ``(N, P, 11)`` float32, in the order of `cell_grid`."""
    return torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2).float()


def decode(cells: Tensor, centers: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes ``(..., P, 4)`` (x0, y0, x1, y1) and points ``(..., P, 3, 2)`` in pixels of the input."""
    step = strides[:, None]
    middle = centers + cells[..., 1:3] * step
    half = cells[..., 3:5].clamp(-4.0, 4.5).exp() * step / 2
    points = centers[:, None] + cells[..., 5:].reshape(*cells.shape[:-1], 3, 2) * step[:, None]
    return torch.cat([middle - half, middle + half], -1), points


class Losses(NamedTuple):
    """Parts of the loss, each a scalar."""

    score: Tensor
    box: Tensor
    points: Tensor

    def total(self) -> Tensor:
        """Weighted sum of the parts."""
        return self.score + 2.0 * self.box + 0.3 * self.points


def iou_and_diou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the same less the normalized centre distance (Zheng et al., AAAI 2020)."""
    common = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    iou = common / (areas - common + 1e-6)
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    return iou, iou - apart.square().sum(-1) / (around.square().sum(-1) + 1e-6)


@torch.no_grad()
def assign(logits: Tensor, boxes: Tensor, faces: Tensor, centers: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """Choose cells, and the face of each, as SimOTA does (Ge et al., "YOLOX", 2021, section 2.3), by size and distance.

    Predicted logits ``(P,)`` and boxes ``(P, 4)``, true faces ``(G, 4)``, G > 0.
    """
    middle, size = (faces[:, :2] + faces[:, 2:]) / 2, (faces[:, 2:] - faces[:, :2]).prod(-1).clamp(min=1e-3).sqrt()
    away = torch.maximum(*((centers[:, axis][None] - middle[:, axis, None]).abs() for axis in (0, 1)))
    level = torch.bucketize(strides, torch.tensor(STRIDES, dtype=torch.float32))
    allowed = (away < _RADIUS * strides) & (size[:, None] >= _SMALLEST[level]) & (size[:, None] < _LARGEST[level])
    cells = allowed.any(0).nonzero()[:, 0]
    allowed = allowed[:, cells]
    iou, _ = iou_and_diou(faces[:, None], boxes[None, cells])
    cost = functional.softplus(-logits[None, cells]) - 3.0 * (iou + 1e-6).log()
    cost = torch.where(allowed, cost, torch.inf)
    count = min(_MOST_CELLS, len(cells))
    wanted = torch.where(allowed, iou, 0.0).topk(count, 1).values.sum(1).int().clamp(1, count)
    least, order = cost.topk(count, 1, largest=False)
    face, rank = ((torch.arange(count)[None] < wanted[:, None]) & least.isfinite()).nonzero(as_tuple=True)
    chosen = torch.full_like(cost, torch.inf)
    chosen[face, order[face, rank]] = least[face, rank]
    best, owner = chosen.min(0)
    positive = best.isfinite()
    return cells[positive], owner[positive]


def detection_loss(
    cells: Tensor,
    samples: Sequence[Photo],
    centers: Tensor,
    strides: Tensor,
    taught: Tensor | None = None,
    share: float = 0.0,
) -> Losses:
    """Loss of a batch, ``cells (N, P, 11)``: quality focal loss (Li et al., NeurIPS 2020), DIoU, L1 on points.

    `taught` are a teacher's scores ``(N, P)``, whose part of the score loss is `share`.
    """
    with torch.no_grad():
        boxes, _ = decode(cells, centers, strides)
    logits = cells[..., 0]
    goal, weight = torch.zeros(cells.shape[:2]), torch.ones(cells.shape[:2])
    rows, columns, true_boxes, true_points = [], [], [], []
    for index, sample in enumerate(samples):
        faces, points = (torch.from_numpy(values[~sample.ignored]) for values in (sample.boxes, sample.points))
        if sample.ignored.any():
            low, high = torch.from_numpy(sample.boxes[sample.ignored])[:, None].tensor_split(2, -1)
            weight[index, ((centers > low) & (centers < high)).all(-1).any(0)] = 0.0
        if len(faces):
            cell, face = assign(logits[index].detach(), boxes[index], faces, centers, strides)
            rows.append(torch.full_like(cell, index))
            columns.append(cell)
            true_boxes.append(faces[face])
            true_points.append(points[face])
    if not rows:
        return Losses(_score_loss(logits, goal, weight).sum(), cells.sum() * 0.0, cells.sum() * 0.0)
    row, column = torch.cat(rows), torch.cat(columns)
    faces, marks = torch.cat(true_boxes), torch.cat(true_points)
    # Only the chosen cells carry a gradient for boxes and points.
    found_boxes, found_points = decode(cells[row, column], centers[column], strides[column])
    iou, diou = iou_and_diou(found_boxes, faces)
    quality = 0.5 + 0.5 * iou.detach()
    goal[row, column], weight[row, column] = quality, 1.0
    total = quality.sum()
    score = _score_loss(logits, goal, weight).sum() / total
    if taught is not None:
        score = (1 - share) * score + share * _score_loss(logits, taught, weight).sum() / taught.sum().clamp(min=1.0)
    size = (faces[:, 2:] - faces[:, :2]).prod(-1).clamp(min=1.0).sqrt()
    known = marks.isfinite()
    error = (found_points - marks.nan_to_num(0.0)).abs() / size[:, None, None]
    points_loss = (error * known).sum() / known.sum().clamp(min=1) * 10.0
    return Losses(score, ((1 - diou) * quality).sum() / total, points_loss)


def _score_loss(logits: Tensor, goal: Tensor, weight: Tensor) -> Tensor:
    apart = (goal - logits.sigmoid()).square()
    return apart * functional.binary_cross_entropy_with_logits(logits, goal, reduction="none") * weight


class ScoreTeacher:
    """YuNet's score of every cell, from a file of free input size: its maps have our strides, one prediction a cell."""

    def __init__(self, path: Path) -> None:
        self._session = open_session(path)

    def __call__(self, images: Float32Array) -> Tensor:
        """Scores ``(N, P)``, 0..1, of images ``(N, 3, S, S)`` BGR 0..255."""
        names = [f"{kind}_{stride}" for kind in ("cls", "obj") for stride in STRIDES]
        found = self._session.run(names, {"input": images})
        return torch.from_numpy(np.sqrt(np.concatenate(found[:3], 1) * np.concatenate(found[3:], 1))[..., 0])


class Run:
    """Network, averaged weights, optimizer and clock of a training, kept in ``last.pt``."""

    def __init__(self, out: Path, minutes: float) -> None:
        torch.manual_seed(0)
        self.out, self.minutes = out, minutes
        self.net = FaceDetectorNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = [[p for p in self.net.parameters() if (p.ndim > 1) is decayed] for decayed in (True, False)]
        self.optimizer = torch.optim.AdamW(
            [{"params": groups[0], "weight_decay": _DECAY}, {"params": groups[1], "weight_decay": 0.0}], lr=_RATE
        )
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.step, self.seconds = 0, 0.0
        if (out / "last.pt").exists():
            state = torch.load(out / "last.pt", weights_only=True)
            self.net.load_state_dict(state["net"])
            self.average.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["clock"]["step"], state["clock"]["seconds"]

    @property
    def progress(self) -> float:
        """Share of the time that is spent: on a slower machine too, the learning rate ends at 0."""
        return min(1.0, self.seconds / (self.minutes * 60))

    def save(self) -> None:
        """Write all that a continued run needs."""
        parts = {"net": self.net, "ema": self.average, "optimizer": self.optimizer}
        state = {name: part.state_dict() for name, part in parts.items()}
        with replacing(self.out / "last.pt") as file:
            torch.save(state | {"clock": {"step": self.step, "seconds": self.seconds}}, file)

    def train_step(self, samples: list[Photo], teacher: ScoreTeacher | None) -> Losses:
        """One optimizer step."""
        pixels = np.stack([s.image for s in samples]).transpose(0, 3, 1, 2).astype(np.float32)
        # The teacher takes as long as half a step: every second one is taught.
        taught = None if teacher is None or self.step % 2 else teacher(np.ascontiguousarray(pixels))
        rate = min(1.0, (self.step + 1) / _WARMUP) * (0.5 + 0.5 * math.cos(math.pi * self.progress) + 1e-3)
        for group in self.optimizer.param_groups:
            group["lr"] = _RATE * rate
        cells = flatten_maps(self.net((torch.from_numpy(pixels) - MEAN) / SCALE))
        share = 0.5 if self.progress < 0.8 else 0.25
        losses = detection_loss(cells, samples, *cell_grid(_SIDE, _SIDE), taught, share)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), 10.0)
        self.optimizer.step()
        pairs = zip(self.average.state_dict().values(), self.net.state_dict().values(), strict=True)
        mine, its = zip(*(pair for pair in pairs if pair[0].dtype.is_floating_point), strict=True)
        torch._foreach_lerp_(mine, its, 1 - min(_EMA, (1 + self.step) / (20 + self.step)))
        self.step += 1
        return losses


class Ranking(NamedTuple):
    """All detections that matter, best score first: scores, whether each hit a face, and the number of faces."""

    scores: Float32Array
    hits: BoolArray
    faces: int

    def at_precision(self, least: float) -> tuple[float, float]:
        """Largest recall with at least this precision, and the score threshold that gives it."""
        found = np.cumsum(self.hits)
        good = np.flatnonzero(found / np.arange(1, len(found) + 1) >= least)
        return (float(found[good[-1]] / self.faces), float(self.scores[good[-1]])) if len(good) else (0.0, 1.0)

    def average_precision(self) -> float:
        """Area under precision over recall, all points."""
        found = np.cumsum(self.hits)
        best = np.maximum.accumulate((found / np.arange(1, len(found) + 1))[::-1])[::-1]
        return float((np.diff(found / self.faces, prepend=0.0) * best).sum())


def rank(detect: Callable[[Uint8Array], Float32Array], photos: Sequence[Photo]) -> Ranking:
    """Match detections ``(N, 5)`` (box, score) to the faces, each face once, best scores first.

    Smaller and invalid faces are ignored: neither missing nor finding them matters.
    """
    scores, hits, faces = [], [], 0
    for photo in photos:
        size = np.sqrt(np.prod(photo.boxes[:, 2:] - photo.boxes[:, :2], 1))
        counts = ~photo.ignored & (size >= LEAST_SHARE * max(photo.image.shape[:2]))
        faces += int(counts.sum())
        found = detect(photo.image)
        overlap = overlaps(found[:, None, :4], photo.boxes)
        free = counts.copy()
        for row in np.argsort(-found[:, 4]):
            candidates = np.where(free & (overlap[row] >= _HIT), overlap[row], 0.0)
            hit = bool(candidates.any())
            if hit:
                free[candidates.argmax()] = False
            elif (overlap[row][~counts] >= _HIT).any():
                continue
            scores.append(found[row, 4])
            hits.append(hit)
    order = np.argsort(-np.array(scores), kind="stable")
    return Ranking(np.array(scores, np.float32)[order], np.array(hits, bool)[order], faces)


def network_detector(net: FaceDetectorNet, least_score: float = 0.05) -> Callable[[Uint8Array], Float32Array]:
    """A detector from a network in evaluation mode: longer side of 320 px, bilinear, on black."""

    @torch.inference_mode()
    def detect(image: Uint8Array) -> Float32Array:
        scale = SIDE_IN_USE / max(image.shape[:2])
        height, width = (max(1, round(length * scale)) for length in image.shape[:2])
        canvas = np.zeros((-(-height // 32) * 32, -(-width // 32) * 32, 3), np.float32)
        canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        cells = flatten_maps(net((torch.from_numpy(canvas).permute(2, 0, 1)[None] - MEAN) / SCALE))
        boxes, scores = decode(cells, *cell_grid(*canvas.shape[:2]))[0][0].numpy(), cells[0, :, 0].sigmoid().numpy()
        boxes, scores = boxes[scores >= least_score], scores[scores >= least_score]
        kept = non_maximum_suppression(boxes, scores, _NMS)
        return np.concatenate([boxes[kept] / scale, scores[kept, None]], 1).astype(np.float32)

    return detect


def read_network(checkpoint: Path) -> FaceDetectorNet:
    """The averaged weights of a checkpoint, in evaluation mode."""
    net = FaceDetectorNet()
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["ema"])
    return net.eval()


PATH = click.Path(exists=True, path_type=Path)
OUT = click.Path(path_type=Path)


@click.group()
def main() -> None:
    """Make the runtime's face detector."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@main.command()
@click.argument("scrfd", type=PATH)
@click.argument("folders", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=OUT, required=True)
@click.option("--every", default=1, help="Take every n-th photograph.")
def label(scrfd: Path, folders: tuple[Path, ...], output: Path, every: int) -> None:
    """Label photographs with SCRFD: points for true boxes, faces that labels miss, whole labels."""
    found = (path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    click.echo(f"{output}: {label_photos(scrfd, sorted(found)[::every], output)} faces")


@main.command()
@click.argument("wider", type=PATH)
@click.argument("labels", type=PATH)
@click.option("--teacher", type=PATH, help="YuNet with free input size.")
@click.option("--minutes", type=float, required=True)
@click.option("-o", "--output", type=OUT, required=True)
def train(wider: Path, labels: Path, teacher: Path | None, minutes: float, output: Path) -> None:
    """Train from random weights, or go on."""
    run, teach = Run(output, minutes), ScoreTeacher(teacher) if teacher else None
    groups = [(read_wider(wider, read_teacher(labels / "wider.npz"), held_out=False), 0.67)]
    for name, (side, share) in _PSEUDO_LABELLED.items():
        if (labels / f"{name}.npz").exists():
            groups.append((read_pseudo_labelled(read_teacher(labels / f"{name}.npz"), side), share))
    held_out = read_wider(wider, None, held_out=True)
    # A continued run must not see the same samples again.
    augmenter = Augmenter(groups, _SIDE, SIDE_IN_USE, np.random.default_rng([0, run.step]))
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stop.append(received))
    run.net.train()
    evaluated, sums, count = run.seconds, np.zeros(3), 0
    while run.progress < 1.0 and not stop:
        started = time.monotonic()
        sums += [float(part.detach()) for part in run.train_step([augmenter.draw() for _ in range(_BATCH)], teach)]
        count += 1
        run.seconds += time.monotonic() - started
        if not np.isfinite(sums).all():
            raise click.ClickException(f"the loss is not finite at step {run.step}")
        if run.seconds - evaluated > _EVALUATE_MINUTES * 60 or run.progress >= 1.0:
            evaluated = run.seconds
            run.save()
            ranking = rank(network_detector(run.average), held_out)
            (recall, score), ap = ranking.at_precision(0.97), ranking.average_precision()
            row = (run.step, run.seconds / 60, *sums / count, ap, recall, score)
            with (output / "log.csv").open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(f"{value:.5g}" for value in row)
            click.echo(f"step {run.step}, {run.seconds / 60:.1f} min: AP {ap:.4f}, recall {recall:.4f}")
            sums, count = np.zeros(3), 0
    run.save()


@main.command()
@click.argument("checkpoint", type=PATH)
@click.argument("wider", type=PATH)
def evaluate(checkpoint: Path, wider: Path) -> None:
    """Average precision, and recall at a precision of .97, on the held-out photographs."""
    ranking = rank(network_detector(read_network(checkpoint)), read_wider(wider, None, held_out=True))
    recall, score = ranking.at_precision(0.97)
    click.echo(f"faces {ranking.faces}, AP {ranking.average_precision():.4f}, recall {recall:.4f} (score {score:.3f})")


@main.command()
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", type=OUT, required=True)
def export(checkpoint: Path, output: Path) -> None:
    """Write the averaged weights as ONNX with free height and width, BatchNorm folded."""
    net = read_network(checkpoint)
    for module in net.modules():
        if isinstance(module, ConvBlock):
            convolution, norm = module[0], module[1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[0], module[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    names = [f"stride{stride}" for stride in STRIDES]
    axes = {"image": {2: "height", 3: "width"}}
    axes |= {name: {2: f"height_{name}", 3: f"width_{name}"} for name in names}
    partial = output.with_suffix(".partial.onnx")
    with warnings.catch_warnings():
        # The other exporter writes a Resize whose sizes are computed, which the quantizer would leave in float.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            net,
            (torch.zeros(1, 3, SIDE_IN_USE, SIDE_IN_USE),),
            partial,
            input_names=["image"],
            output_names=names,
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    partial.replace(output)


if __name__ == "__main__":
    main()
