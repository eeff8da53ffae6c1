"""Unlabelled landmarks (weight 0) count in no balance, no loss and no validation NME."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pfld_edge_calib import nme_per_face, read_points_csv
from pfld_edge_runtime import WFLW_98, Contract
from pfld_edge_train.batches import Batch, epoch_order, validation_batches
from pfld_edge_train.config import AugmentConfig, LossConfig, load_config
from pfld_edge_train.engine import mean_error
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.face_cache import balanced_repeats, open_cache
from pfld_edge_train.fit import fit
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.run_log import Callback
from pfld_edge_train.run_state import new_run

from .conftest import TINY

EYES = WFLW_98.normalizing_points


class Constant(nn.Module):
    """Gives the same landmarks for every face."""

    def __init__(self, landmarks: Tensor) -> None:
        super().__init__()
        self.landmarks = landmarks

    def forward(self, x: Tensor) -> Tensor:
        return self.landmarks[: len(x)].flatten(1)


def batch_of(landmarks: np.ndarray, weights: np.ndarray) -> Batch:
    count = len(landmarks)
    values = torch.from_numpy(landmarks).float(), torch.from_numpy(weights).float()
    return Batch(torch.zeros(count, 3, 8, 8), *values, torch.zeros(count, 6, dtype=torch.bool))


def test_a_hidden_eye_corner_leaves_the_validation_nme_of_the_other_faces() -> None:
    random = np.random.default_rng(0)
    truth = random.uniform(0.2, 0.8, (5, 98, 2))
    predicted = truth + random.normal(0, 0.01, truth.shape)
    weights = np.ones((5, 98))
    weights[1, EYES[0]] = 0
    truth[1, EYES[0]] = truth[1].mean(axis=0)  # where readers put unlabelled points
    truth[3, EYES[1]] = truth[3, EYES[0]]  # labelled, but both corners coincide
    weights[4, 96:] = 0
    truth[4, 96:] = 0
    found = mean_error(Constant(torch.from_numpy(predicted).float()), [batch_of(truth, weights)], EYES)
    labelled = np.where(weights[..., None] > 0, truth, np.nan)
    errors, points = nme_per_face(predicted, labelled, EYES), (weights > 0).sum(axis=1)
    kept = np.isfinite(errors) & (np.arange(5) != 3)
    assert kept.tolist() == [True, False, True, False, True]
    assert found == pytest.approx(float(np.average(errors[kept], weights=points[kept])), rel=1e-5)


def test_unlabelled_points_change_no_balance() -> None:
    random = np.random.default_rng(1)
    landmarks = np.repeat(random.uniform(20, 80, (1, 98, 2)), 3, axis=0).astype(np.float32)
    landmarks[:, EYES[0]], landmarks[:, EYES[1]] = (45, 40), (55, 40)
    weights = np.ones((3, 98), np.float32)
    weights[1, 5] = 0
    landmarks[1, 5] = (0, 900)
    weights[2, EYES[1]] = 0
    one, two, three = balanced_repeats(np.full(3, 2), np.full(3, 1.5), landmarks, weights, EYES)
    assert one == two > 2
    assert three == 2, "without both eye corners nothing is known of the pose"


def test_faces_without_eye_corners_weigh_one_in_an_eye_normalized_loss() -> None:
    truth = np.random.default_rng(2).uniform(0.2, 0.8, (1, 98, 2))
    weights = np.ones((1, 98))
    weights[0, EYES[0]] = 0
    batch = batch_of(truth, weights)
    predicted = batch.landmarks + 0.03
    plain, normalized = (
        LandmarkLoss(LossConfig(kind="l1", eye_normalized=chosen), 32, Contract())(predicted, batch)
        for chosen in (False, True)
    )
    assert float(normalized) == pytest.approx(float(plain))


def labels(noise_faces: Path, folder: Path, hidden: dict[int, list[int]]) -> Path:
    """The faces of noise with a confidence column for each point, 0 where hidden."""
    lines = [",".join(["image", *(f"{axis}{i}" for i in range(98) for axis in "xy"), *(f"c{i}" for i in range(98))])]
    for number, face in enumerate(read_points_csv(noise_faces / "faces.csv")):
        points = np.array(face.landmarks)
        points[hidden.get(number, [])] = 0
        confidence = ["0" if i in hidden.get(number, []) else "1" for i in range(98)]
        lines.append(",".join([str(face.image), *(f"{value:.2f}" for value in points.ravel()), *confidence]))
    (folder / "hidden.csv").write_text("\n".join(lines))
    lines = [f"{key} = {value!r}" for key, value in TINY.items()]
    (folder / "run.toml").write_text("\n".join([*lines, "[[data]]", "path = 'hidden.csv'", "group_by = 'person'"]))
    return folder / "run.toml"


class Notes(Callback):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def test_faces_without_eye_corners_do_not_stop_a_run(noise_faces: Path, tmp_path: Path) -> None:
    hidden = {number: [*EYES] for number in range(0, 48, 5)}
    config, notes = load_config(labels(noise_faces, tmp_path, hidden)), Notes()
    fit(new_run(config), tmp_path / "run", tmp_path / "cache", notes)
    cache = open_cache(config, tmp_path / "cache", Contract(input_size=32))
    left_out = sum(bool(cache.held_out[number]) for number in hidden)
    assert left_out > 0
    assert f"{left_out} of {int(cache.held_out.sum())} validation faces have no NME" in notes.texts[0]
    assert (tmp_path / "run/best.pth").is_file()


def test_a_validation_split_without_any_eye_corner_is_refused(noise_faces: Path, tmp_path: Path) -> None:
    config = load_config(labels(noise_faces, tmp_path, {number: [EYES[0]] for number in range(48)}))
    with pytest.raises(TrainConfigError, match="no validation face has both normalizing points"):
        fit(new_run(config), tmp_path / "run", tmp_path / "cache")


def test_faces_without_any_label_are_neither_trained_on_nor_validated_on(noise_faces: Path, tmp_path: Path) -> None:
    config, contract = load_config(labels(noise_faces, tmp_path, {})), Contract(input_size=32)
    cache = open_cache(config, tmp_path / "cache", contract)
    held_out, trained = (int(np.flatnonzero(side)[0]) for side in (cache.held_out, ~cache.held_out))
    config = load_config(labels(noise_faces, tmp_path, {held_out: list(range(98)), trained: list(range(98))}))
    config = replace(config, augment=AugmentConfig(flip=0))
    part = open_cache(config, tmp_path / "cache", contract)
    assert len(epoch_order(part, 0, 0)) == len(epoch_order(cache, 0, 0)) - 1
    whole, fewer = (sum(len(batch.faces) for batch in validation_batches(item, contract, 4)) for item in (cache, part))
    assert fewer == whole - 1
