"""The loss of a training step: PFLD's formula term by term, what is switched off, and what is refused."""

import math
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from pfld_edge_runtime import WFLW_98, Contract
from pfld_edge_runtime.contract import LandmarkScheme
from pfld_edge_runtime.geometry.pose import FACE_SHAPE, RIGID_POINTS
from pfld_edge_train.batches import Batch
from pfld_edge_train.config import LossConfig, TrainConfig
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.losses import LandmarkLoss, attribute_frequencies, point_loss

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONTRACT = Contract()
SIZE = 112
TRUE = torch.tensor([[0.5, 0.2, -0.3], [0.0, 0.0, 0.0], [-0.9, 0.1, 0.4], [0.1, -0.4, 0.0]])
"""Yaw, pitch and roll of the batch's heads in radians."""
ATTRIBUTES = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0]]).bool()
FREQUENCIES = torch.tensor([0.25, 0.05, 0.5, 0.1, 0.4, 0.2])


def batch() -> Batch:
    random = np.random.default_rng(0)
    landmarks = random.uniform(0, 1, (4, 98, 2))
    yaw, pitch, roll = TRUE.double().numpy().T
    turns = Rotation.from_euler("ZYX", np.stack([roll, -yaw, -pitch], axis=1)).as_matrix()
    seen = FACE_SHAPE @ turns.transpose(0, 2, 1) + (0, 0, 900)
    landmarks[:, RIGID_POINTS] = seen[..., :2] / seen[..., 2:] * 5 + 0.5
    weights = random.uniform(0.2, 1, (4, 98))
    return Batch(torch.zeros(4, 3, 8, 8), torch.tensor(landmarks).float(), torch.tensor(weights).float(), ATTRIBUTES)


def predicted() -> Tensor:
    return batch().landmarks + torch.randn(4, 98, 2, generator=torch.Generator().manual_seed(1)) * 0.05


def loss_of(config: LossConfig, angles: Tensor | None = None) -> float:
    found = LandmarkLoss(config, SIZE, CONTRACT, FREQUENCIES)(predicted(), batch(), angles)
    return float(found)


def weighted_mean(faces: Tensor, extra: Tensor | float = 0.0) -> float:
    """The mean of wing loss with a factor and a summand a face."""
    losses = point_loss(LossConfig(kind="wing"))(predicted() * SIZE, batch().landmarks * SIZE) * faces[:, None]
    if isinstance(extra, Tensor):
        losses = losses + extra[:, None]
    return float((losses * batch().weights).sum() / batch().weights.sum())


def deviations(angles: Tensor) -> Tensor:
    rows = zip(angles.tolist(), TRUE.tolist(), strict=True)
    return torch.tensor([sum(1 - math.cos(a - b) for a, b in zip(*row, strict=True)) for row in rows])


ANGLES = TRUE + torch.tensor([[0.3, -0.2, 0.1], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.4, 0.6, 0.2]])


def test_by_default_it_is_wing_loss_weighted_by_trust() -> None:
    assert loss_of(LossConfig()) == pytest.approx(weighted_mean(torch.ones(4)), rel=1e-5)


def test_the_papers_formula_is_the_product_of_its_two_sums() -> None:
    classes = torch.tensor([4.0, 0.0, 4.0 + 2.0 + 5.0, 2.5])
    found = loss_of(LossConfig(pose_weight="paper", attribute_weight="paper"), ANGLES)
    assert found == pytest.approx(weighted_mean(classes * deviations(ANGLES)), rel=1e-3)


def test_its_parts_can_be_switched_off() -> None:
    paper = loss_of(LossConfig(pose_weight="paper"), ANGLES)
    assert paper == pytest.approx(weighted_mean(deviations(ANGLES)), rel=1e-3)
    attributes = loss_of(LossConfig(attribute_weight="paper"))
    assert attributes == pytest.approx(weighted_mean(torch.tensor([4.0, 0.0, 11.0, 2.5])), rel=1e-5)
    auxiliary = loss_of(LossConfig(auxiliary_weight=2.0), ANGLES)
    assert auxiliary == pytest.approx(weighted_mean(torch.ones(4), 2 * deviations(ANGLES)), rel=1e-3)


def test_taken_literally_right_angles_stop_the_training_of_landmarks_and_one_plus_does_not() -> None:
    gradients = {}
    for mode, auxiliary in (("paper", 0.0), ("deviation", 1.0), ("none", 0.0)):
        landmarks = predicted().requires_grad_()
        config = LossConfig(pose_weight=mode, auxiliary_weight=auxiliary)
        angles = TRUE if mode != "none" else None
        LandmarkLoss(config, SIZE, CONTRACT)(landmarks, batch(), angles).backward()
        assert landmarks.grad is not None
        gradients[mode] = float(landmarks.grad.norm())
    assert gradients["paper"] < 1e-4 * gradients["none"]
    assert gradients["deviation"] == pytest.approx(gradients["none"], rel=1e-4)


def test_angles_are_trained_by_their_own_loss_alone_except_in_the_papers_formula() -> None:
    gradients = []
    for config in (
        LossConfig(auxiliary_weight=1.0),
        LossConfig(pose_weight="deviation", auxiliary_weight=1.0),
        LossConfig(pose_weight="paper"),
    ):
        angles = ANGLES.clone().requires_grad_()
        LandmarkLoss(config, SIZE, CONTRACT)(predicted(), batch(), angles).backward()
        assert angles.grad is not None
        gradients.append(angles.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[2].abs().max() > 0


def test_turned_heads_weigh_more_and_a_roll_does_not_count() -> None:
    factors = 1 + (1 - torch.cos(TRUE[:, 0])) + (1 - torch.cos(TRUE[:, 1]))
    assert loss_of(LossConfig(pose_weight="turned")) == pytest.approx(weighted_mean(factors), rel=1e-4)


def test_balanced_attributes_have_a_mean_weight_of_one_over_the_training_faces() -> None:
    from pfld_edge_train.losses import attribute_weights

    attributes = torch.rand(2000, 6, generator=torch.Generator().manual_seed(0)) < torch.tensor(
        [0.3, 0.05, 0.2, 0.001, 0.4, 0.0]
    )
    weights = attribute_weights(attributes, attribute_frequencies(attributes), "balanced")
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
    assert float(weights.min()) > 0
    plain, rare = ~attributes.any(dim=1), attributes[:, 1]
    assert float(weights[rare].min()) > float(weights[plain].max())


def test_frequencies_count_a_face_as_often_as_an_epoch_shows_it() -> None:
    attributes = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
    assert attribute_frequencies(attributes).tolist() == [0.5, 0.5, 0, 0, 0, 0]
    assert attribute_frequencies(attributes, torch.tensor([3, 1])).tolist() == [0.75, 0.25, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "config", [LossConfig(), LossConfig(pose_weight="deviation", attribute_weight="balanced", auxiliary_weight=0.5)]
)
def test_processes_with_a_common_normalizer_have_the_loss_of_one(config: LossConfig) -> None:
    loss, whole, landmarks = LandmarkLoss(config, SIZE, CONTRACT, FREQUENCIES), batch(), predicted()
    angles = ANGLES if config.needs_auxiliary else None
    shares = []
    for rows in (slice(0, 1), slice(1, 4)):
        part = Batch(whole.faces[rows], whole.landmarks[rows], whole.weights[rows], whole.attributes[rows])
        normalizer = whole.weights.sum() / 2
        shares.append(loss(landmarks[rows], part, None if angles is None else angles[rows], normalizer))
    assert float(sum(shares) / 2) == pytest.approx(float(loss(landmarks, whole, angles)), rel=1e-5)


def test_a_face_whose_pose_is_unknown_trains_its_landmarks_and_no_angles() -> None:
    blind = batch()
    blind.weights[0, list(RIGID_POINTS)] = 0
    landmarks, angles = predicted().requires_grad_(), ANGLES.clone().requires_grad_()
    for mode in ("paper", "deviation"):
        config = LossConfig(pose_weight=mode, auxiliary_weight=1.0)
        LandmarkLoss(config, SIZE, CONTRACT)(landmarks, blind, angles).backward()
    assert landmarks.grad is not None
    assert angles.grad is not None
    assert landmarks.grad.isfinite().all()
    assert angles.grad.isfinite().all()
    assert float(landmarks.grad[0].abs().sum()) > 0
    assert angles.grad[0].tolist() == [0, 0, 0]
    assert float(angles.grad[1].abs().sum()) > 0


def test_angles_that_are_needed_and_missing_are_named() -> None:
    config = LossConfig(auxiliary_weight=1.0)
    loss = LandmarkLoss(config, SIZE, CONTRACT)
    assert config.needs_auxiliary
    with pytest.raises(ValueError, match="auxiliary network's angles"):
        loss(predicted(), batch())


def test_pose_of_another_scheme_is_refused() -> None:
    scheme = LandmarkScheme("ibug-68", WFLW_98.names[:68], tuple(range(68)), (36, 45))
    other = CONTRACT.replace(landmarks=scheme)
    plain = LossConfig(kind="l1")
    LandmarkLoss(plain, SIZE, other)
    assert not plain.needs_auxiliary
    for config in (LossConfig(pose_weight="turned"), LossConfig(auxiliary_weight=0.1)):
        with pytest.raises(TrainConfigError, match=r"need wflw-98 points.*has ibug-68: set pose_weight"):
            LandmarkLoss(config, SIZE, other)


@pytest.mark.parametrize("frequencies", [None, torch.zeros(6)])
def test_attribute_weights_without_attributes_are_refused(frequencies: Tensor | None) -> None:
    with pytest.raises(TrainConfigError, match="none has any"):
        LandmarkLoss(LossConfig(attribute_weight="balanced"), SIZE, CONTRACT, frequencies)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"kind": "hinge"},
            "kind should be 'wing', 'adaptive-wing', 'soft-wing', 'smooth-l1', 'l2', 'l1' or 'dense', found",
        ),
        ({"wing_w": 0}, "run: loss.wing_w should be greater than 0, found 0"),
        ({"smooth_l1_beta": float("nan")}, "smooth_l1_beta should be a finite number"),
        ({"adaptive_wing_alpha": 2.0}, "adaptive_wing_alpha should be greater than 2"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight should be greater than or equal to 0"),
        ({"pose_weight": "yes"}, "pose_weight should be 'none', 'paper', 'deviation' or 'turned', found 'yes'"),
        ({"pose_weight": "deviation"}, "'deviation' needs an auxiliary_weight above 0"),
        ({"attribute_weight": "all"}, "attribute_weight should be 'none', 'paper' or 'balanced', found 'all'"),
        ({"wing": 3.0}, "run: unknown key loss.wing; known: kind, wing_w"),
    ],
)
def test_mistakes_in_the_loss_table_are_named(table: dict[str, object], message: str) -> None:
    record = {"data": [{"path": "faces.csv"}], "loss": table}
    with pytest.raises(TrainConfigError, match=message) as caught:
        TrainConfig.from_dict(record, "run")
    assert str(caught.value).startswith(("run: ", "run, loss: "))
    assert str(caught.value).count("loss") == 1


def test_a_loss_table_survives_its_checkpoint() -> None:
    table = {"kind": "soft-wing", "pose_weight": "deviation", "attribute_weight": "balanced", "auxiliary_weight": 1}
    config = TrainConfig.from_dict({"data": [{"path": "faces.csv"}], "loss": table})
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_the_losses_page_names_every_key_and_choice() -> None:
    page = (Path(__file__).parents[2] / "docs/losses.md").read_text()
    table = page.partition("```toml")[2].partition("```")[0]
    assert TrainConfig.from_dict(tomllib.loads(table) | {"data": [{"path": "faces.csv"}]}).loss.needs_auxiliary
    named = set(re.findall(r"`([\w-]+)`", page)) | set(re.findall(r"^(\w+) =", table, re.MULTILINE))
    assert {item.name for item in fields(LossConfig)} <= named
    for name in ("kind", "pose_weight", "attribute_weight"):
        assert set(get_args(get_type_hints(LossConfig)[name])) <= named
