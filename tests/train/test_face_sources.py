"""Prepared faces train like photographs, 68 points teach only what they know of 98, large poses are repeated."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfld_edge.cli import run
from pfld_edge_calib import FaceSetError, read_points_csv
from pfld_edge_calib.datasets.prepared import ShardCrops, open_prepared, read_shard
from pfld_edge_calib.datasets.wflw import wflw_98_from_68
from pfld_edge_runtime import WFLW_98, Contract
from pfld_edge_runtime.geometry.wflw_points import landmarks_68
from pfld_edge_train.batches import training_batches, validation_batches
from pfld_edge_train.checkpoint import load_checkpoint
from pfld_edge_train.config import TrainConfig, load_config
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.face_cache import (
    LARGE_POSE_SHARE,
    MOST_REPEATS,
    JoinedCrops,
    balanced_repeats,
    open_cache,
    split_groups,
)
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


def test_shards_are_read_where_they_lie_and_a_damaged_picture_is_named(noise_faces: Path, tmp_path: Path) -> None:
    folder = prepared(noise_faces / "faces.csv", tmp_path / "set")
    config = load_config(config_of(folder, tmp_path / "run.toml"))
    cache = open_cache(config, tmp_path / "cache", Contract(input_size=32))
    assert not (tmp_path / "cache").exists()
    manifest = open_prepared(folder)
    shards = [read_shard(folder / entry.file, 48) for entry in manifest.shards]
    crops = np.stack([shard.crops[row] for shard in shards for row in range(shard.crops.shape[0])])
    rows = np.array([0, len(crops) - 1, 21, 20, 19])
    assert cache.crops.shape == crops.shape
    np.testing.assert_array_equal(cache.crops[rows], crops[rows])
    np.testing.assert_array_equal(cache.crops[20], crops[20])
    shard = folder / manifest.shards[1].file
    data = bytearray(shard.read_bytes())
    start = data.index(b"\xff\xd8\xff")
    data[start : start + 40] = bytes(40)
    shard.write_bytes(data)
    damaged = JoinedCrops([ShardCrops(folder / entry.file, 48) for entry in manifest.shards])
    with pytest.raises(FaceSetError, match=r"shard-00001\.npz: picture 0 is damaged"):
        damaged[np.array([0, 20])]


def test_shards_of_an_older_version_count_their_crops_as_photographs(noise_faces: Path, tmp_path: Path) -> None:
    folder = prepared(noise_faces / "faces.csv", tmp_path / "set")
    for shard in folder.glob("*.npz"):
        with np.load(shard) as file:
            old = {name: file[name] for name in file.files if name not in ("windows", "photo_landmarks")}
        np.savez(shard, **old)
    config = load_config(config_of(folder, tmp_path / "run.toml"))
    cache = open_cache(config, tmp_path / "cache", Contract(input_size=32))
    assert cache.windows.tolist() == [[0, 0, 48]] * len(cache.windows)
    assert np.abs(cache.landmarks - 24).max() < 24


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


EYES = WFLW_98.normalizing_points


def faces_of(shares: list[float]) -> np.ndarray:
    """Faces in a box of 100 pixels whose outer eye corners are so many of them apart."""
    points = np.zeros((len(shares), 98, 2), np.float32)
    points[:, 0], points[:, 32] = (0, 0), (100, 100)
    points[:, EYES[0]] = points[:, EYES[1]] = (50, 40)
    points[:, EYES[1], 0] += 100 * np.array(shares, np.float32)
    return points


def repeats_of(shares: list[float], balance: float, repeat: int = 6) -> list[int]:
    count = len(shares)
    found = balanced_repeats(
        np.full(count, repeat), np.full(count, balance), faces_of(shares), np.ones((count, 98), np.float32), EYES
    )
    return list(found.tolist())


def test_a_face_counts_by_the_inverse_of_its_eyes_distance() -> None:
    assert repeats_of([LARGE_POSE_SHARE, LARGE_POSE_SHARE / 2, LARGE_POSE_SHARE / 3], 1.0) == [6, 12, 18]
    assert repeats_of([LARGE_POSE_SHARE, LARGE_POSE_SHARE / 4], 1.5) == [6, 48]


def test_without_balance_every_face_keeps_its_number() -> None:
    assert repeats_of([0.5, 0.3, 0.1, 0.0], 0.0) == [6, 6, 6, 6]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 4), st.integers(1, 9))
def test_no_face_is_shown_less_often_nor_without_end(shares: list[float], balance: float, repeat: int) -> None:
    found = np.array(repeats_of(shares, balance, repeat))
    assert (found >= repeat).all()
    assert (found <= MOST_REPEATS * repeat).all()
    order = np.argsort(shares, kind="stable")
    assert (np.diff(found[order]) <= 0).all(), "a face that is turned farther is shown less often"


def test_the_size_of_the_picture_changes_nothing() -> None:
    points = faces_of([0.48, 0.3, 0.1])
    ones = np.ones(3, np.int64), np.full(3, 1.5)
    small, large = (
        balanced_repeats(*ones, points * scale, np.ones((3, 98), np.float32), EYES) for scale in (0.1, 40.0)
    )
    np.testing.assert_array_equal(small, large)


def test_coco_and_pts_files_are_sources_like_the_csv_of_their_points(tmp_path: Path, noise_faces: Path) -> None:
    faces = read_points_csv(noise_faces / "faces.csv")
    visible = [np.column_stack([face.landmarks, np.full(98, 2)]).ravel().tolist() for face in faces]  # type: ignore[arg-type]
    record = {
        "images": [{"id": i, "file_name": face.image.name} for i, face in enumerate(faces)],
        "annotations": [{"image_id": i, "keypoints": points} for i, points in enumerate(visible)],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(record))
    (tmp_path / "points").mkdir()
    for face in faces:
        assert face.landmarks is not None
        lines = "\n".join(f"{x} {y}" for x, y in (face.landmarks.astype(np.float64) + 1).tolist())
        (tmp_path / f"points/{face.image.stem}.pts").write_text(f"version: 1\nn_points: 98\n{{\n{lines}\n}}\n")
    caches = []
    for path in (noise_faces / "faces.csv", tmp_path / "annotations.json", tmp_path / "points"):
        data = {"path": str(path), "images": str(noise_faces), "group_by": "person"}
        config = TrainConfig.from_dict({"input_size": 32, "validation": 0.3, "data": [data]})
        caches.append(open_cache(config, tmp_path / "cache", Contract(input_size=32)))
    # The files under points/ come in the order of their names.
    order = sorted(range(len(faces)), key=lambda i: faces[i].image.name.replace(".png", ".pts"))
    for other, rows in ((caches[1], list(range(len(faces)))), (caches[2], order)):
        for name in ("landmarks", "weights", "held_out"):
            np.testing.assert_allclose(getattr(caches[0], name)[rows], getattr(other, name), atol=1e-5)
        np.testing.assert_array_equal(caches[0].crops[np.array(rows[:3])], other.crops[np.arange(3)])


@pytest.mark.parametrize("prepared_by", ["image", "person"])
def test_group_by_holds_for_prepared_faces_too(noise_faces: Path, tmp_path: Path, prepared_by: str) -> None:
    # Four faces each of twelve people, whose names hold the "_" that parts a person from a number.
    lines = (noise_faces / "faces.csv").read_text().splitlines()
    rows = [f"a_b{i % 12}_{i}.png,{line.partition(',')[2]}" for i, line in enumerate(lines[1:])]
    for i in range(len(rows)):
        (tmp_path / f"a_b{i % 12}_{i}.png").write_bytes((noise_faces / f"p{i}_0.png").read_bytes())
    (tmp_path / "faces.csv").write_text("\n".join([lines[0], *rows]))
    folder = prepared(tmp_path / "faces.csv", tmp_path / "set", "--group-by", prepared_by)
    held_out = []
    for path in (tmp_path / "faces.csv", folder):
        data = [{"path": str(path), "group_by": "person"}]
        config = TrainConfig.from_dict({"input_size": 32, "validation": 0.4, "data": data})
        held_out.append(open_cache(config, tmp_path / "cache", Contract(input_size=32)).held_out)
    assert held_out[0].tolist() == held_out[1].tolist()
    assert 4 <= held_out[0].sum() <= 44


def test_names_that_are_not_utf_8_have_their_side_of_the_split() -> None:
    sides = split_groups([f"caf\udce9{i}.jpg" for i in range(200)], 0.5, 0)  # as os.fsdecode
    assert 60 < sides.sum() < 140


def test_a_source_says_its_balance(tmp_path: Path, noise_faces: Path) -> None:
    data = {"path": str(noise_faces / "faces.csv"), "repeat": 2}
    cut = [
        open_cache(TrainConfig.from_dict({"input_size": 32, "data": [data | extra]}), tmp_path, Contract(input_size=32))
        for extra in ({}, {"pose_balance": 2.0})
    ]
    assert (cut[0].repeats == 2).all()
    distance = np.linalg.norm(cut[1].landmarks[:, EYES[0]] - cut[1].landmarks[:, EYES[1]], axis=1)
    share = distance / np.ptp(cut[1].landmarks, axis=1).max(axis=1)
    assert cut[1].repeats.tolist() == pytest.approx(np.round(2 * np.clip((0.48 / share) ** 2, 1, 16)).tolist())
