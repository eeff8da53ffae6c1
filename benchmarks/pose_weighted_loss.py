"""What PFLD's pose-weighted loss does to training, on drawn heads whose poses are known.

    python benchmarks/pose_weighted_loss.py [--steps 400] [--seeds 3]

Trains a half-width pfld-edge-s at 64 pixels once for each way to weigh, and prints the errors on other heads. The heads
are the runtime's face shape, drawn as coloured discs; yaw has a standard deviation of 25 degrees: turned heads are few.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from pfld_edge_runtime import Contract
from pfld_edge_runtime.geometry import FACE_SHAPE, RIGID_POINTS
from pfld_edge_train.batches import Batch
from pfld_edge_train.config import LossConfig
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.models import AuxiliaryNet, ModelConfig, WithAuxiliary, build_model
from pfld_edge_train.pose import FOCAL_LENGTH, head_angles

SIZE = 64
POSE_SPREAD = (25.0, 12.0, 12.0)
"""Standard deviations of yaw, pitch and roll in degrees."""
TURNED = 40.0
RUNS = {
    "wing": LossConfig(),
    "wing, auxiliary 1": LossConfig(auxiliary_weight=1.0),
    "wing, turned": LossConfig(pose_weight="turned"),
    "wing, deviation, auxiliary 1": LossConfig(pose_weight="deviation", auxiliary_weight=1.0),
    "wing, paper": LossConfig(pose_weight="paper"),
    "wing, paper, auxiliary 1": LossConfig(pose_weight="paper", auxiliary_weight=1.0),
    "l2": LossConfig(kind="l2"),
    "l2, paper": LossConfig(kind="l2", pose_weight="paper"),
}


@dataclass(frozen=True, slots=True)
class Result:
    """Errors on heads that were not trained on, and the mean pose weight at the start and the end of training."""

    pixels: float
    turned_pixels: float
    degrees: float
    first_weight: float
    last_weight: float


def head() -> NDArray[np.float64]:
    """98 points in millimetres: the rigid ones where they are, the others anywhere between three of them."""
    random = np.random.default_rng(0)
    points = np.array(
        [random.dirichlet(np.ones(3)) @ FACE_SHAPE[random.choice(17, 3, replace=False)] for _ in range(98)]
    )
    points[list(RIGID_POINTS)] = FACE_SHAPE
    return points


def drawn(shape: NDArray[np.float64], count: int, random: np.random.Generator) -> Batch:
    """Draw heads in random poses, in the crop that their points give them."""
    yaw, pitch, roll = random.normal(0, POSE_SPREAD, (count, 3)).clip(-75, 75).T
    turns = Rotation.from_euler("ZYX", np.stack([roll, -yaw, -pitch], axis=1), degrees=True).as_matrix()
    placed = shape @ turns.transpose(0, 2, 1) + (0, 0, FOCAL_LENGTH * 180)
    seen = placed[..., :2] / placed[..., 2:]
    low, high = seen.min(axis=1), seen.max(axis=1)
    landmarks = (seen - ((low + high) / 2)[:, None]) / ((high - low).max(axis=1) * 1.2)[:, None, None] + 0.5
    faces = random.normal(90, 25, (count, SIZE, SIZE, 3)).astype(np.float32)
    colors = np.random.default_rng(1).uniform(0, 255, (17, 3))
    for face, points, depths in zip(faces, landmarks[:, RIGID_POINTS], placed[:, RIGID_POINTS, 2], strict=True):
        for number in np.argsort(-depths):
            center = tuple((points[number] * SIZE * 16).astype(int).tolist())
            cv2.circle(face, center, 16 * SIZE // 24, colors[number].tolist(), -1, cv2.LINE_AA, 4)
    pixels = torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1
    return Batch(
        pixels, torch.from_numpy(landmarks).float(), torch.ones(count, 98), torch.zeros(count, 6, dtype=torch.bool)
    )


def batches(steps: int, seed: int) -> Iterator[Batch]:
    """Give heads without end, 32 a step."""
    random, shape = np.random.default_rng([2, seed]), head()
    for _ in range(steps):
        yield drawn(shape, 32, random)


def trained(config: LossConfig, steps: int, seed: int, unseen: Batch) -> Result:
    """Train a network and its auxiliary network, and measure both."""
    torch.manual_seed(seed)
    network = build_model(ModelConfig("pfld-edge-s", 0.5, SIZE))
    both = WithAuxiliary(network, AuxiliaryNet(network.feature_channels, SIZE)).train()
    loss = LandmarkLoss(config, SIZE, Contract(input_size=SIZE))
    optimizer = torch.optim.AdamW(both.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    weights = []
    for batch in batches(steps, seed):
        landmarks, angles = both(batch.faces)
        total = loss(landmarks.view(-1, 98, 2), batch, angles if loss.needs_auxiliary else None)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            weights.append(float((1 - torch.cos(angles - head_angles(batch.landmarks))).sum(dim=1).mean()))
    return measured(both.eval(), unseen, weights)


@torch.no_grad()
def measured(both: WithAuxiliary, unseen: Batch, weights: list[float]) -> Result:
    """Mean point error in pixels, of all heads and of turned ones; median error of the angles."""
    landmarks, angles = both(unseen.faces)
    errors: Tensor = (landmarks.view(-1, 98, 2) - unseen.landmarks).norm(dim=2).mean(dim=1) * SIZE
    true = head_angles(unseen.landmarks)
    turned = true[:, 0].abs() > np.radians(TURNED)
    share = max(1, len(weights) // 20)
    return Result(
        float(errors.mean()),
        float(errors[turned].mean()),
        float((angles - true).abs().median().rad2deg()),
        float(np.mean(weights[:share])),
        float(np.mean(weights[-share:])),
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    unseen = drawn(head(), 500, np.random.default_rng(7))
    head_of_table = ("loss", "pixels", "pixels, turned", "angles, degrees", "pose factor, first 5 %", "last 5 %")
    print_row(head_of_table)
    print_row(["---"] * len(head_of_table))
    for name, config in RUNS.items():
        results = [trained(config, options.steps, seed, unseen) for seed in range(options.seeds)]
        pixels, turned, degrees, first, last = np.median([astuple(result) for result in results], axis=0)
        print_row([name, f"{pixels:.2f}", f"{turned:.2f}", f"{degrees:.1f}", f"{first:.3f}", f"{last:.4f}"])


def print_row(cells: Sequence[str]) -> None:
    """Print a line of a Markdown table at once."""
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
