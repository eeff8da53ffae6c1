"""Training end to end on synthetic faces: it learns, it keeps the last good checkpoint."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pfld_edge_calib import FaceSetError
from pfld_edge_runtime import WFLW_98
from pfld_edge_train.checkpoint import load_model
from pfld_edge_train.config import TrainConfig, load_config
from pfld_edge_train.errors import TrainConfigError, TrainingDivergedError
from pfld_edge_train.fit import fit
from pfld_edge_train.run_log import Callback, EpochResult
from pfld_edge_train.run_state import RunState, new_run, resumed_run

FACES = 40


@pytest.fixture(scope="module")
def faces_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs whose place and size tell where all 98 landmarks are."""
    folder = tmp_path_factory.mktemp("faces")
    random = np.random.default_rng(0)
    shape = random.uniform(-1, 1, (98, 2))
    shape[60], shape[72] = (-0.6, -0.2), (0.6, -0.2)
    # A disc looks the same in the mirror, so its landmarks must too.
    shape = (shape + shape[list(WFLW_98.mirror)] * (-1, 1)) / 2
    lines = [",".join(["image", *(f"{axis}{i}" for i in range(98) for axis in "xy")])]
    for number in range(FACES):
        center, radius = random.uniform(80, 120, 2), random.uniform(30, 50)
        image = np.full((200, 200, 3), 40, np.uint8)
        cv2.circle(image, tuple(center.astype(int).tolist()), int(radius), (90, 160, 220), -1)
        cv2.imwrite(str(folder / f"person{number}_0.png"), image)
        points = center + shape * radius
        lines.append(",".join([f"person{number}_0.png", *(f"{value:.2f}" for value in points.ravel())]))
    (folder / "faces.csv").write_text("\n".join(lines))
    return folder / "faces.csv"


def config(faces_csv: Path, **changes: object) -> TrainConfig:
    values = {
        "model": "pfld-edge-s",
        "width_factor": 0.5,
        "input_size": 32,
        "epochs": 4,
        "batch_size": 8,
        "validation": 0.2,
        "data": [{"path": str(faces_csv), "group_by": "person"}],
    }
    return TrainConfig.from_dict(values | changes)


class Recorder(Callback):
    def __init__(self) -> None:
        self.results: list[EpochResult] = []

    def result(self, result: EpochResult) -> None:
        self.results.append(result)


def run(state: RunState, out: Path) -> list[EpochResult]:
    recorder = Recorder()
    fit(state, out, out.parent / "cache", recorder)
    return recorder.results


@pytest.mark.parametrize(("model", "loss"), [("pfld-edge-s1", "wing"), ("pfld-edge-s", "dense")])
def test_the_loss_falls(faces_csv: Path, tmp_path: Path, model: str, loss: str) -> None:
    settings = config(faces_csv, model=model, epochs=12, optimizer={"learning_rate": 5e-3}, loss={"kind": loss})
    results = run(new_run(settings), tmp_path / "run")
    assert results[-1].loss < 0.7 * results[0].loss
    assert (tmp_path / "run/best.pth").exists()
    assert (tmp_path / "run/log.csv").read_text().count("\n") == 13


def test_a_diverging_run_stops_and_keeps_the_last_checkpoint_which_another_configuration_does_not_resume(
    faces_csv: Path, tmp_path: Path
) -> None:
    state = new_run(config(faces_csv, epochs=2))
    run(new_run(config(faces_csv, epochs=1)), tmp_path / "run")
    with pytest.raises(TrainConfigError, match="not a checkpoint of this configuration"):
        resumed_run(config(faces_csv, epochs=2), tmp_path / "run/last.pth")
    with torch.no_grad():
        next(iter(state.learner.model.parameters())).fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="lower learning_rate"):
        run(state, tmp_path / "run")
    load_model(tmp_path / "run/last.pth")


def test_a_missing_photograph_is_named(faces_csv: Path, tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_text(faces_csv.read_text())
    with pytest.raises(FaceSetError, match=r"person0_0\.png: no such photograph"):
        run(new_run(config(tmp_path / "faces.csv")), tmp_path / "run")


def test_faces_of_one_person_stay_on_one_side(faces_csv: Path) -> None:
    from pfld_edge_calib import read_points_csv
    from pfld_edge_train.face_cache import split_groups

    faces = read_points_csv(faces_csv, group_by="person") * 2
    held_out = split_groups([face.group for face in faces], 0.3, seed=1)
    sides = {(face.group, bool(side)) for face, side in zip(faces, held_out, strict=True)}
    assert len(sides) == len({face.group for face in faces}) == FACES
    assert 0 < held_out.sum() < len(faces)


def test_the_scheme_of_the_contract_is_checked(faces_csv: Path, tmp_path: Path) -> None:
    header, *rows = faces_csv.read_text().splitlines()
    short = [",".join(line.split(",")[: 1 + 2 * 68]) for line in (header, *rows)]
    (faces_csv.parent / "short.csv").write_text("\n".join(short))
    with pytest.raises(TrainConfigError, match=f"68 points a face, the network has {WFLW_98.num_landmarks}"):
        run(new_run(config(faces_csv.parent / "short.csv")), tmp_path / "run")


def test_the_example_configuration_trains_on_the_bundled_portraits(tmp_path: Path) -> None:
    example = load_config(Path(__file__).parents[2] / "train/configs/example.toml")
    (data,) = example.data
    # 6,400 faces in all: a minute at the hundred images a second that a slow core does.
    assert data.repeat * example.epochs <= 6400
    short = replace(example, epochs=2, data=(replace(data, repeat=64),))
    results = run(new_run(short), tmp_path / "run")
    assert results[1].loss < results[0].loss
    assert load_model(tmp_path / "run/ema.pth")[1].model.input_size == 112
