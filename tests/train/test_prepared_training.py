"""Training on prepared faces is training on the photographs; 68 points teach what they know of 98 and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pfld_edge.cli import run
from pfld_edge_calib import read_points_csv
from pfld_edge_calib.point_maps import wflw_98_from_68
from pfld_edge_runtime import WFLW_98, Contract
from pfld_edge_runtime.reading import landmarks_68
from pfld_edge_train.batches import training_batches, validation_batches
from pfld_edge_train.checkpoint import load_checkpoint
from pfld_edge_train.config import load_config
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.face_cache import open_cache
from pfld_edge_train.fit import fit
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.run_state import new_run

from .conftest import TINY, WriteConfig

ROOT = Path(__file__).parents[2]


def prepared(csv: Path, out: Path, *more: str) -> Path:
    arguments = ["prepare", "csv", str(csv), "-o", str(out), "--input-size", "32", "--workers", "1"]
    assert run([*arguments, "--group-by", "person", "--shard-faces", "20", *more]) == 0
    return out


def config_of(path: Path, target: Path, text: str = "") -> Path:
    lines = [f"{key} = {value!r}" for key, value in TINY.items()]
    target.write_text("\n".join([*lines, "[[data]]", f"path = {str(path)!r}", text]))
    return target


@pytest.mark.usefixtures("one_thread")
def test_a_run_on_raw_shards_is_a_run_on_the_photographs(
    write_config: WriteConfig, noise_faces: Path, tmp_path: Path
) -> None:
    folder = prepared(noise_faces / "faces.csv", tmp_path / "set", "--encoding", "raw")
    fit(new_run(load_config(write_config("listed"))), tmp_path / "a", tmp_path / "cache")
    fit(new_run(load_config(config_of(folder, tmp_path / "run.toml"))), tmp_path / "b", tmp_path / "cache")
    one, other = (load_checkpoint(tmp_path / name / "last.pth").weights for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_other_crops_and_damaged_shards_are_refused(noise_faces: Path, tmp_path: Path) -> None:
    folder = prepared(noise_faces / "faces.csv", tmp_path / "set", "--margin", "1.4")
    config, contract = load_config(config_of(folder, tmp_path / "run.toml")), Contract(input_size=32)
    with pytest.raises(
        TrainConfigError, match=r"prepared with --input-size 32 --margin 1\.4, the network needs 32 and 1\.2"
    ):
        open_cache(config, tmp_path / "cache", contract)
    folder = prepared(noise_faces / "faces.csv", tmp_path / "whole")
    config = load_config(config_of(folder, tmp_path / "run.toml"))
    shard = sorted(folder.glob("*.npz"))[1]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"shard-00001\.npz: a damaged shard"):
        open_cache(config, tmp_path / "cache", contract)


def test_no_run_learns_from_a_prepared_test_list(noise_faces: Path, tmp_path: Path) -> None:
    folder = prepared(noise_faces / "faces.csv", tmp_path / "set")
    manifest = folder / "prepared.json"
    manifest.write_text(manifest.read_text().replace('"csv"', '"wflw test"'))
    config = load_config(config_of(folder, tmp_path / "run.toml"))
    with pytest.raises(TrainConfigError, match="made of WFLW's test list"):
        open_cache(config, tmp_path / "cache", Contract(input_size=32))


@pytest.fixture(scope="module")
def csv_68(noise_faces: Path) -> Path:
    """The faces of noise with 68 of their points."""
    lines = [",".join(["image", *(f"{axis}{i}" for i in range(68) for axis in "xy")])]
    for face in read_points_csv(noise_faces / "faces.csv"):
        points = landmarks_68(face.landmarks)[0]
        lines.append(",".join([face.image.name, *(f"{value:.3f}" for value in points.ravel())]))
    (noise_faces / "faces68.csv").write_text("\n".join(lines))
    return noise_faces / "faces68.csv"


@pytest.mark.parametrize("shards", [False, True])
def test_68_points_teach_nothing_of_what_they_do_not_know(csv_68: Path, tmp_path: Path, shards: bool) -> None:
    source = prepared(csv_68, tmp_path / "set") if shards else csv_68
    config = load_config(config_of(source, tmp_path / "run.toml", "scheme = 'ibug-68'"))
    contract = Contract(input_size=32)
    cache = open_cache(config, tmp_path / "cache", contract)
    _, mask = wflw_98_from_68()
    batch = next(iter(validation_batches(cache, contract, 8)))
    np.testing.assert_array_equal(batch.weights.numpy(), np.broadcast_to(mask, batch.weights.shape))
    batch = training_batches(cache, contract, config.augment, 8, 0, 0)[0]
    predicted = torch.rand(8, 98, 2, requires_grad=True)
    loss = LandmarkLoss(config.loss, 32, contract)(predicted, batch, None, batch.weights.sum())
    loss.backward()  # type: ignore[no-untyped-call]
    assert predicted.grad is not None
    learned = predicted.grad.abs().sum(dim=2) > 0
    # Mirrored faces have mirrored masks, and WFLW's mask is its own mirror image.
    assert torch.equal(learned, torch.tensor(mask[list(WFLW_98.mirror)] > 0).expand(8, 98))
    assert torch.equal(learned, torch.tensor(mask > 0).expand(8, 98))


def test_68_points_without_their_scheme_are_explained(csv_68: Path, tmp_path: Path) -> None:
    config = load_config(config_of(csv_68, tmp_path / "run.toml"))
    with pytest.raises(TrainConfigError, match=r"68 points a face.*scheme = 'ibug-68' in its \[\[data\]\] maps them"):
        open_cache(config, tmp_path / "cache", Contract(input_size=32))
