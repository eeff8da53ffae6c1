"""Train the face detector from random weights.

    python train_detector.py --wider WIDER --labels data --out run --minutes 90

The same command continues an interrupted run from ``run/last.pt``. Progress is the share of ``--minutes`` that was
spent training, so a slower machine makes fewer steps and the learning rate still ends at zero.
"""

import argparse
import copy
import csv
import logging
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from detector_data import Augmenter, Photo, Sample, read_pseudo_labelled, read_teacher, read_wider
from detector_loss import Losses, Targets, detection_loss
from detector_model import MEAN, SCALE, DetectorShape, FaceDetectorNet, cell_grid, flatten_maps
from evaluate_detector import network_detector, rank

log = logging.getLogger("train_detector")

# Pseudo-labelled groups beside WIDER: longest side kept, and share of the samples (WIDER has the rest).
_GROUPS = {"wflw": (800, 0.16), "helen_afw": (256, 0.06), "aflw2000": (256, 0.05), "lfw": (256, 0.06)}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run needs beside its data; saved in its checkpoints."""

    minutes: float
    batch: int = 8
    side: int = 256
    side_in_use: int = 320
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 200
    ema_decay: float = 0.999
    seed: int = 0
    evaluate_every: float = 15.0
    save_every: float = 5.0


class Average:
    """Exponential moving average of a network's weights and statistics, faster in the first steps."""

    def __init__(self, net: FaceDetectorNet, decay: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Move towards the network's present weights."""
        decay = min(self._decay, (1 + step) / (20 + step))
        pairs = zip(self.net.state_dict().values(), net.state_dict().values(), strict=True)
        mine, its = zip(*(pair for pair in pairs if pair[0].dtype.is_floating_point), strict=True)
        torch._foreach_lerp_(mine, its, 1 - decay)


class Run:
    """Network, optimizer, average and clock of a training run, with its files."""

    def __init__(self, out: Path, shape: DetectorShape, settings: Settings) -> None:
        self.out, self.settings = out, settings
        torch.manual_seed(settings.seed)
        self.net = FaceDetectorNet(shape).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        decayed = [p for p in self.net.parameters() if p.ndim > 1]
        others = [p for p in self.net.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.learning_rate,
        )
        self.average = Average(self.net, settings.ema_decay)
        self.step, self.seconds, self.best = 0, 0.0, 0.0
        out.mkdir(parents=True, exist_ok=True)
        if (out / "last.pt").exists():
            self._restore(torch.load(out / "last.pt", map_location="cpu", weights_only=True))

    @property
    def progress(self) -> float:
        """Share of the run's time that is spent, 0..1."""
        return min(1.0, self.seconds / (self.settings.minutes * 60))

    def learning_rate(self) -> float:
        """Warm-up over the first steps, then a cosine over the run's time."""
        warmup = min(1.0, (self.step + 1) / self.settings.warmup_steps)
        return self.settings.learning_rate * warmup * (0.5 + 0.5 * math.cos(math.pi * self.progress) + 1e-3)

    def save(self, name: str = "last.pt") -> None:
        """Write everything that a continued run needs."""
        state: dict[str, Any] = {
            "shape": self.net.shape.to_dict(),
            "net": self.net.state_dict(),
            "ema": self.average.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "clock": {"step": self.step, "seconds": self.seconds, "best": self.best},
        }
        torch.save(state, self.out / "partial.pt")
        (self.out / "partial.pt").replace(self.out / name)

    def _restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.average.net.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        clock = state["clock"]
        self.step, self.seconds, self.best = int(clock["step"]), float(clock["seconds"]), float(clock["best"])
        log.info("continues at step %d, %.1f minutes", self.step, self.seconds / 60)

    def write_row(self, row: dict[str, object]) -> None:
        """Append a line to ``log.csv``."""
        path = self.out / "log.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)


def to_batch(samples: list[Sample]) -> tuple[Tensor, list[Targets]]:
    """Network input ``(N, 3, S, S)`` and the faces of each sample."""
    pixels = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
    targets = []
    for sample in samples:
        boxes, points, ignored = (torch.from_numpy(a) for a in (sample.boxes, sample.points, sample.ignored))
        targets.append(Targets(boxes[~ignored], points[~ignored], boxes[ignored]))
    return (pixels.float() - MEAN) / SCALE, targets


def train_step(run: Run, samples: list[Sample], grid: tuple[Tensor, Tensor]) -> Losses:
    """One optimizer step on a batch."""
    images, targets = to_batch(samples)
    rate = run.learning_rate()
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    losses = detection_loss(flatten_maps(run.net(images)), targets, *grid)
    run.optimizer.zero_grad(set_to_none=True)
    losses.total().backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(run.net.parameters(), 10.0)
    run.optimizer.step()
    run.average.update(run.net, run.step)
    run.step += 1
    return losses


def evaluate(run: Run, photos: list[Photo], losses: list[float]) -> None:
    """Measure the averaged weights on the held-out photographs, log, and keep the best."""
    ranking = rank(network_detector(run.average.net), photos)
    (recall, score), (strict_recall, _) = ranking.at_precision(0.97), ranking.at_precision(0.98)
    ap = ranking.average_precision()
    names = ("loss_score", "loss_box", "loss_points")
    row: dict[str, object] = {"step": run.step, "minutes": f"{run.seconds / 60:.1f}"}
    row |= {name: f"{value:.4f}" for name, value in zip(names, losses, strict=True)}
    row |= {"ap": f"{ap:.4f}", "recall_p97": f"{recall:.4f}", "score_p97": f"{score:.3f}"}
    run.write_row(row | {"recall_p98": f"{strict_recall:.4f}"})
    log.info("step %d, %.1f min: AP %.4f, recall@.97 %.4f (score %.3f)", run.step, run.seconds / 60, ap, recall, score)
    if recall + ap > run.best:
        run.best = recall + ap
        run.save("best.pt")


def train(run: Run, augmenter: Augmenter, held_out: list[Photo]) -> None:
    """Step until the run's minutes are spent; on SIGTERM or Ctrl-C save and stop."""
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stop.append(received))
    settings = run.settings
    grid = cell_grid(settings.side, settings.side)
    last_saved = last_evaluated = last_logged = run.seconds
    sums, count = np.zeros(3), 0
    run.net.train()
    while run.progress < 1.0:
        started = time.monotonic()
        losses = train_step(run, [augmenter.draw() for _ in range(settings.batch)], grid)
        sums += [float(losses.score.detach()), float(losses.box.detach()), float(losses.points.detach())]
        count += 1
        run.seconds += time.monotonic() - started
        if not np.isfinite(sums).all():
            raise SystemExit(f"the loss is not finite at step {run.step}: continue from {run.out / 'last.pt'}")
        if run.seconds - last_logged > 60:
            last_logged = run.seconds
            log.info("step %d, %.1f min, losses %s", run.step, run.seconds / 60, np.round(sums / count, 4))
        if run.seconds - last_evaluated > settings.evaluate_every * 60 or run.progress >= 1.0:
            last_evaluated = run.seconds
            evaluate(run, held_out, [float(value) for value in sums / count])
            sums, count = np.zeros(3), 0
        if run.seconds - last_saved > settings.save_every * 60 or run.progress >= 1.0:
            last_saved = run.seconds
            run.save()
        if stop:
            run.save()
            log.info("stopped at step %d; the same command continues", run.step)
            return


def read_groups(wider: Path, labels: Path) -> tuple[list[tuple[list[Photo], float]], list[Photo]]:
    """Training groups with their shares, WIDER first, and the held-out photographs; unlabelled groups are left out."""
    found = {name: labels / f"{name}.npz" for name in ("wider", *_GROUPS)}
    teachers = {name: read_teacher(path) for name, path in found.items() if path.exists()}
    log.info("pseudo-labels of %s", ", ".join(teachers) or "nothing")
    photos = read_wider(wider, teachers.get("wider"), held_out=False)
    groups = [(photos, 1 - sum(share for _, share in _GROUPS.values()))]
    for name, (side, share) in _GROUPS.items():
        if name in teachers:
            groups.append((read_pseudo_labelled(teachers[name], side), share))
    return groups, read_wider(wider, None, held_out=True)


def main() -> None:
    """Start or continue a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wider", type=Path, required=True, help="folder with images/ and boxes.csv")
    parser.add_argument("--labels", type=Path, required=True, help="folder with the files of pseudo_label_faces.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="time to train")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    run = Run(given.out, DetectorShape(), Settings(minutes=given.minutes))
    groups, held_out = read_groups(given.wider, given.labels)
    log.info("photographs %s, held out %d", [len(photos) for photos, _ in groups], len(held_out))
    # A continued run must not see the same samples again.
    rng = np.random.default_rng([run.settings.seed, run.step])
    train(run, Augmenter(groups, run.settings.side, run.settings.side_in_use, rng), held_out)


if __name__ == "__main__":
    main()
