"""Trains a heat-map network densely: cross-entropy over all places and the error of the mean place.

    python dense/train_dense.py SHAPE DATA OUT --until HH:MM [--init CHECKPOINT] [--rate 2e-3] [--batch 32] ...

The same command resumes from OUT/state.pth. The schedule ends at the given time of day: progress p grows each step by
(1 - p) * dt / (end - now), so that it reaches 1 at the end whatever the machine's load; learning rate and augmentation
follow p. OUT/log.csv has a line an evaluation of the averaged weights on held-out faces; OUT/ema.pth are those weights.
A newer pack of faces is taken at the next evaluation.
"""

import argparse
import csv
import math
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import initial_weights
from face_batches import Augmentation, Faces, figures, normalized, plain_crops, train_batch
from networks import SHAPES, STRETCH, HeatMapNet

POINT_WEIGHT = torch.ones(98)
POINT_WEIGHT[60:76] = 1.6  # lids: 16 of 98 points on which openness hangs
POINT_WEIGHT[0:33] = 0.9
POINT_WEIGHT /= POINT_WEIGHT.mean()


def bilinear_cells(points: Tensor, side: int, fine: int) -> tuple[Tensor, Tensor]:
    """The four nearest cells of each point and their shares: indices into `cell_places`, ``(N, P, 4)`` each.

    Points beyond the outermost cells' centres count as those.
    """
    count = side * fine
    place = (((points - 0.5) / STRETCH + 0.5) * count - 0.5).clamp(0, count - 1)
    low = place.floor().clamp(max=count - 2)
    share = place - low
    low = low.long()
    cells, shares = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            quarter = (y % fine) * fine + x % fine
            cells.append(quarter * side * side + (y // fine) * side + x // fine)
            shares.append((share[..., 0] if dx else 1 - share[..., 0]) * (share[..., 1] if dy else 1 - share[..., 1]))
    return torch.stack(cells, -1), torch.stack(shares, -1)


def face_sizes(points: Tensor) -> Tensor:
    """Eye distance, at least 0.3 of the box, fractions of the crop: ``(N,)``."""
    eyes = (points[:, 60] - points[:, 72]).norm(dim=1)
    return torch.maximum(eyes, 0.3 * (points.amax(1) - points.amin(1)).amax(1))


class DenseLoss(torch.autograd.Function):
    """Cross-entropy over places plus the mean place's error, with the gradient in closed form.

    Autograd needs a dozen passes over the (N, P, cells) maps for the same; a fifth of a step's time.
    """

    @staticmethod
    def forward(ctx, logits, places, cells, shares, points, weight, sizes, point_loss):  # noqa: ANN001, ANN205
        """Losses ``(2,)``: cross-entropy, error over the face's size; both means weighted by `weight` ``(N, P)``.

        The gradient is that of ``cross-entropy + point_loss * error``.
        """
        chance = logits.softmax(2)
        found = chance @ places
        at = chance.gather(2, cells).clamp(min=1e-12)
        count = weight.numel()
        dense = -((at.log() * shares).sum(2) * weight).sum() / count
        off = found - points
        length = (off.square().sum(2) + 1e-8).sqrt()
        scaled = weight / sizes[:, None]
        error = (length * scaled).sum() / count
        pull = off * (point_loss * scaled / length / count)[..., None]  # of the error, by the mean place
        ctx.save_for_backward(chance, places, cells, shares, weight / count, pull, found)
        return torch.stack([dense, error])

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        chance, places, cells, shares, weight, pull, found = ctx.saved_tensors
        slope = pull @ places.T
        slope += (weight - (pull * found).sum(2))[..., None]
        slope *= chance
        slope.scatter_add_(2, cells, -shares * weight[..., None])
        return slope * gradient[0], *[None] * 7


def losses(logits: Tensor, points: Tensor, trust: Tensor, net: HeatMapNet, point_loss: float) -> Tensor:
    """Cross-entropy over places, and the mean error over the face's size, both weighted by trust and lids."""
    weight = trust * POINT_WEIGHT
    weight = weight / weight.mean()
    cells, shares = bilinear_cells(points, net.side, net.shape.fine)
    return DenseLoss.apply(logits, net.places, cells, shares, points, weight, face_sizes(points), point_loss)


class Average:
    """Exponential moving average of weights and BatchNorm statistics."""

    def __init__(self, net: HeatMapNet, decay: float) -> None:
        self.values = {k: v.detach().clone().float() for k, v in net.state_dict().items()}
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, net: HeatMapNet) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 20))
        floating = [(self.values[k], v) for k, v in net.state_dict().items() if v.dtype.is_floating_point]
        torch._foreach_lerp_([a for a, _ in floating], [v.float() for _, v in floating], 1 - decay)


def evaluate(shape_net: HeatMapNet, values: dict[str, Tensor], inputs: Tensor, true: np.ndarray) -> dict[str, float]:
    """Figures of the averaged weights; rank correlation of the heat maps' spread with the error."""
    shape_net.load_state_dict(values, strict=False)
    shape_net.eval()
    found, spread = [], []
    with torch.inference_mode():
        for start in range(0, len(inputs), 64):
            chance = shape_net.logits(inputs[start : start + 64]).softmax(2)
            place = chance @ shape_net.places
            found.append(place)
            square = chance @ shape_net.places.square().sum(1)
            spread.append((square - place.square().sum(2)).clamp(min=1e-9).sqrt())
    landmarks = torch.cat(found).numpy()
    result = figures(landmarks, true)
    error = np.linalg.norm(landmarks - true, axis=2)
    result["spread_spearman"] = rank_correlation(torch.cat(spread).numpy().ravel(), error.ravel())
    return result


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    rank = lambda v: np.argsort(np.argsort(v))  # noqa: E731
    return float(np.corrcoef(rank(a), rank(b))[0, 1])


def make_optimizer(net: HeatMapNet, rate: float, decay: float) -> torch.optim.Optimizer:
    matrices = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), eps=1e-7, foreach=True)


def train_mode(net: HeatMapNet, frozen: int) -> None:
    """Training mode but for the first blocks, whose weights and statistics stay."""
    net.train()
    for block in net.blocks[:frozen]:
        block.eval().requires_grad_(False)


def seconds_until(clock: str) -> float:
    hour, minute = map(int, clock.split(":"))
    return (datetime.now().replace(hour=hour, minute=minute, second=0) - datetime.now()).total_seconds()


def save(path: Path, record: object) -> None:
    partial = path.with_name(f".{path.name}.partial")
    torch.save(record, partial)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--until", required=True, help="time of day HH:MM at which the schedule ends")
    parser.add_argument("--init", type=Path)
    parser.add_argument("--places", help="the checkpoint's block for each block, '-' for random weights")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--decay", type=float, default=0.02)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--point-loss", type=float, default=10.0, help="weight of the mean places' error")
    parser.add_argument("--freeze", type=int, default=0, help="first blocks that stay as they are: a third faster with 2")
    parser.add_argument("--progress", type=float, help="0 to 1: resume the schedule here, where time passed without CPU")
    parser.add_argument("--strength", type=float, default=0.75, help="of augmentation, 0 to 1; 1 for runs of millions of faces")
    parser.add_argument("--every", type=float, default=480, help="seconds between evaluations")
    parser.add_argument("--bf16", action="store_true", help="pays on CPUs with AVX512-BF16 alone; elsewhere 6 times slower")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    run(options)


def run(options: argparse.Namespace) -> None:
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    faces, augmentation = Faces(options.data), Augmentation(options.seed)
    net = HeatMapNet(SHAPES[options.shape]).to(memory_format=torch.channels_last)
    judge = HeatMapNet(SHAPES[options.shape]).to(memory_format=torch.channels_last)
    state = torch.load(out / "state.pth", weights_only=False) if (out / "state.pth").exists() else None
    if state is None and options.init:
        places = [None if p == "-" else int(p) for p in options.places.split(",")] if options.places else list(range(20))
        images = torch.from_numpy(train_batch(faces, augmentation, 512)[0]).permute(0, 3, 1, 2)
        random = initial_weights.load(net, options.init, places, images)
        initial_weights.rescale(net, images)
        print("random weights:", *sorted({key.rsplit(".", 1)[0] for key in random}), flush=True)
    optimizer, average = make_optimizer(net, options.rate, options.decay), Average(net, options.ema)
    step, seen, progress = 0, 0, 0.0
    if state is not None:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, average.steps = state["ema"], state["ema_steps"]
        step, seen, progress = state["step"], state["seen"], state["progress"]
        augmentation.random.bit_generator.state = state["random"]
        torch.set_rng_state(state["torch_random"])
    if options.progress is not None:
        progress = options.progress
    inputs, true = held_out_inputs(faces)
    last = checked = time.time()
    sums, spent, first = np.zeros(3), np.zeros(3), state is None
    while True:
        now = time.time()
        left = seconds_until(options.until)
        progress = min(1.0, progress + (1 - progress) * min(1.0, (now - last) / max(left + now - last, 1e-3)))
        last = now
        finished = left <= 0 or progress >= 1
        if first or now - checked > options.every or finished:
            row = {"time": f"{datetime.now():%H:%M:%S}", "step": step, "seen": seen, "progress": progress,
                   "lr": optimizer.param_groups[0]["lr"], "dense": sums[0] / max(sums[2], 1), "error": sums[1] / max(sums[2], 1),
                   "faces_per_s": sums[2] * options.batch / (now - checked), "augment_share": spent[0] / max(spent.sum(), 1e-9),
                   "train_faces": len(faces.train), **evaluate(judge, average.values, inputs, true)}  # fmt: skip
            append(out / "log.csv", row)
            save(out / "state.pth", {
                "net": net.state_dict(), "optimizer": optimizer.state_dict(), "ema": average.values,
                "ema_steps": average.steps, "step": step, "seen": seen, "progress": progress,
                "random": augmentation.random.bit_generator.state, "torch_random": torch.get_rng_state(),
                "options": {k: str(v) for k, v in vars(options).items()},
            })  # fmt: skip
            save(out / "ema.pth", {"weights": average.values, "shape": asdict(net.shape), "name": options.shape, "seen": seen, "figures": row})
            if finished:
                print("done", flush=True)
                return
            if faces.changed:
                faces.reload()
                inputs, true = held_out_inputs(faces)
            first = False
            checked, sums, spent = time.time(), np.zeros(3), np.zeros(3)
            last = checked
        # The last eighth sees faces nearly as they are.
        late = max(0.0, (progress - 0.85) / 0.15)
        augmentation.strength = options.strength * (1 - 0.6 * late)
        warm = min(1.0, (step + 1) / 300)
        rate = options.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        began = time.thread_time()
        images, points, trust = train_batch(faces, augmentation, options.batch)
        x = torch.from_numpy(images).permute(0, 3, 1, 2)  # channels last already
        middle = time.thread_time()
        train_mode(net, options.freeze)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            logits = net.logits(x)
        both = losses(logits, torch.from_numpy(points), torch.from_numpy(trust), net, options.point_loss)
        optimizer.zero_grad(set_to_none=True)
        both[0].backward()  # the gradient of both, see DenseLoss
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0, foreach=True)
        optimizer.step()
        average.update(net)
        step, seen = step + 1, seen + options.batch
        sums += (*both.tolist(), 1)
        spent += (middle - began, time.thread_time() - middle, 0)
        if not math.isfinite(sums[0]):
            raise SystemExit("the loss is not finite: lower --rate")


def held_out_inputs(faces: Faces) -> tuple[Tensor, np.ndarray]:
    crops, true = plain_crops(faces, faces.held_out)
    return torch.from_numpy(normalized(crops.astype(np.float32))).permute(0, 3, 1, 2), true


def append(path: Path, row: dict[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
    print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
