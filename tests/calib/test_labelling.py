"""Labelling: what several predictions agree on, what is dropped, and a run that a kill can't harm."""

import csv
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfld_edge_calib import FaceSetError, read_points_csv
from pfld_edge_calib.errors import LabellingError
from pfld_edge_calib.face import DatasetPhoto, photo_units
from pfld_edge_calib.labelling.labeller import Labeller, LabelSettings, augmented_predictions, consensus
from pfld_edge_calib.labelling.run import boxes_by_photo, label_photos, label_tasks, photos_of, write_labels
from pfld_edge_calib.parallel import ResultsFolder, ordered_results, run_locally
from pfld_edge_runtime import WFLW_98, Contract, LandmarkModel, LandmarkScheme, ModelContractError
from pfld_edge_runtime.arrays import Float32Array, Uint8Array

SCHEME = LandmarkScheme("dots", ("blue", "green", "red", "blue too"), (3, 1, 2, 0), (0, 2))
CONTRACT = Contract(model="dots", input_size=64, landmarks=SCHEME)


def brightest(crops: Uint8Array, shift: float = 0.0) -> Float32Array:
    """A network that finds one dot a channel, by its centre of mass, and the first one twice."""
    size = crops.shape[1]
    mass = crops.astype(np.float64) + 1e-9
    places = (np.arange(size) + 0.5) / size
    x = (mass.sum(axis=1) * places[:, None]).sum(axis=1) / mass.sum(axis=(1, 2))
    y = (mass.sum(axis=2) * places[:, None]).sum(axis=1) / mass.sum(axis=(1, 2))
    found = np.stack([x, y], axis=-1)[:, [0, 1, 2, 0]]
    return (found + shift).astype(np.float32)


def teacher(shift: float = 0.0, name: str = "dots") -> LandmarkModel:
    return LandmarkModel(CONTRACT, partial(brightest, shift=shift), name=name)


TRUTH = np.array([[60, 70], [90, 120], [130, 75], [60, 70]], np.float32)
BOX = np.array([[50.0, 60.0, 140.0, 130.0]])


@pytest.fixture
def photo() -> Uint8Array:
    """A dot of each colour on black; pixel centres lie at integers + 0.5."""
    image = np.zeros((200, 200, 3), np.uint8)
    for channel, (x, y) in enumerate(TRUTH[:3].astype(int)):
        image[y - 3 : y + 3, x - 3 : x + 3, channel] = 255
    return image


def test_the_mirror_image_and_further_crops_find_the_same_points(photo: Uint8Array) -> None:
    predictions = augmented_predictions(photo, BOX, [teacher()], flip=True, crops=3)
    assert predictions.shape == (6, 1, 4, 2)
    np.testing.assert_allclose(predictions, np.broadcast_to(TRUTH, predictions.shape), atol=0.5)


def test_an_outlier_moves_the_label_little_and_its_weight_a_lot() -> None:
    random = np.random.default_rng(0)
    predictions = (random.uniform(0, 100, (1, 1, 98, 2)) + random.normal(0, 0.1, (7, 1, 98, 2))).astype(np.float32)
    sane = consensus(predictions, WFLW_98)
    predictions[3, 0, 10] += 40
    odd = consensus(predictions, WFLW_98)
    assert np.abs(odd.landmarks - sane.landmarks).max() < 0.3
    assert odd.point_weights[0].argmin() == 10
    assert odd.point_weights[0, 10] < 0.2 < 0.9 < np.delete(odd.point_weights[0], 10).min()
    assert odd.weights[0] > 0.9


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.05, 50), noise=st.floats(0, 30))
@settings(max_examples=30, deadline=None)
def test_trust_lies_between_0_and_1_and_is_the_inverse_of_the_summed_errors(
    seed: int, scale: float, noise: float
) -> None:
    random = np.random.default_rng(seed)
    predictions = (random.uniform(-40, 40, (2, 98, 2)) + random.normal(0, noise, (5, 2, 98, 2))).astype(np.float32)
    found = consensus(predictions, WFLW_98)
    assert ((found.weights > 0) & (found.weights <= 1)).all()
    assert ((found.point_weights > 0) & (found.point_weights <= 1)).all()
    trust = found.weights[:, None] * found.point_weights
    expected = 0.03 / np.sqrt(0.03**2 + found.face_disagreement[:, None] ** 2 + found.disagreement**2)
    np.testing.assert_allclose(trust, expected)
    larger = consensus(predictions * np.float32(max(scale, 1)), WFLW_98)
    np.testing.assert_allclose(larger.weights, found.weights, rtol=1e-3)  # a larger photograph changes no trust


def test_teachers_that_do_not_fit_are_refused() -> None:
    other = replace(CONTRACT, landmarks=replace(SCHEME, name="other", names=("a", "b", "c", "d")))
    with pytest.raises(ModelContractError, match=r"b\.onnx finds 4 landmarks \(other\), a\.onnx finds 4 \(dots\)"):
        Labeller([teacher(name="a.onnx"), LandmarkModel(other, brightest, name="b.onnx")], LabelSettings())
    blind = replace(CONTRACT, landmarks=replace(SCHEME, mirror=(0, 1, 2, 3)))
    with pytest.raises(LabellingError, match="says no mirror image"):
        Labeller([LandmarkModel(blind, brightest, name="b.onnx")], LabelSettings(flip=True))
    with pytest.raises(LabellingError, match="always agrees with itself"):
        Labeller([teacher()], LabelSettings())
    with pytest.raises(LabellingError, match="at least one"):
        Labeller([], LabelSettings())


def test_a_damaged_teacher_is_named(photo: Uint8Array) -> None:
    damaged = LandmarkModel(CONTRACT, lambda crops: brightest(crops) * np.float32(np.nan), name="bad.onnx")
    with pytest.raises(LabellingError, match=r"bad\.onnx gave landmarks that are not finite"):
        Labeller([teacher(), damaged], LabelSettings()).label(photo, BOX)


def test_small_unsure_and_double_faces_are_dropped_and_counted(photo: Uint8Array) -> None:
    boxes = np.concatenate([BOX, BOX + 4, [[0, 0, 20, 20]]])
    faces, dropped = Labeller([teacher()], LabelSettings(flip=True, least_size=26)).label(photo, boxes)
    assert len(faces) == 1
    assert dropped == {"small": 1, "twice": 1}
    np.testing.assert_allclose(faces[0].landmarks, TRUTH, atol=0.5)
    # Two networks that lie a quarter of the crop apart.
    quarrel = [teacher(), teacher(0.25)]
    assert Labeller(quarrel, LabelSettings(least_agreement=0.25)).label(photo, BOX)[1] == {"unsure": 1}
    assert len(Labeller(quarrel, LabelSettings(least_agreement=0)).label(photo, BOX)[0]) == 1


def test_the_last_pass_predictions_into_the_box_of_the_landmarks(photo: Uint8Array) -> None:
    seen: list[Uint8Array] = []

    def watched(crops: Uint8Array) -> Float32Array:
        seen.append(crops)
        return brightest(crops)

    wide = np.array([[0.0, 0.0, 180.0, 180.0]])
    Labeller([LandmarkModel(CONTRACT, watched), teacher()], LabelSettings(passes=2)).label(photo, wide)
    # The dots' box is 70 wide, the given one 180.
    lit = [int((crops > 100).sum()) for crops in seen]
    assert lit[1] > 3 * lit[0]


@pytest.fixture
def folder(tmp_path: Path, photo: Uint8Array) -> Path:
    for number in range(5):
        cv2.imwrite(str(tmp_path / f"photo{number}.png"), np.roll(photo, number, axis=1))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    return tmp_path


def make() -> Labeller:
    return Labeller([teacher(), teacher(0.01)], LabelSettings(flip=True), lambda _photo: BOX)


def labelled(folder: Path, name: str, start: Mapping[int, bytes] = MappingProxyType({})) -> tuple[bytes, list[bytes]]:
    """Label a folder, of which an earlier run did some units; gives the CSV, and the results of all units."""
    units = list(photo_units(label_tasks(photos_of([folder]), None, folder), 2))
    results = ResultsFolder(folder / f"{name}.partial", {"run": "test"})
    for index, result in start.items():
        results.put(index, result)
    label_photos(units, make, results, run_locally(1))
    write_labels(units, results, folder / name, 4)
    done = [results.get(index) for index in range(len(units))]
    shutil.rmtree(results.path)
    return (folder / name).read_bytes(), [result for result in done if result is not None]


def test_labels_are_read_back_with_their_trust(folder: Path) -> None:
    labelled(folder, "labels.csv")
    faces = read_points_csv(folder / "labels.csv")
    assert [face.image for face in faces] == [folder / f"photo{number}.png" for number in range(5)]
    for number, face in enumerate(faces):
        assert face.landmarks is not None
        assert face.point_weights is not None
        np.testing.assert_allclose(face.landmarks, TRUTH + np.array([number, 0]), atol=1.5)
        assert 0.5 < face.weight < 1
        assert ((face.point_weights > 0.5) & (face.point_weights < 1)).all()


@given(done=st.sets(st.integers(0, 2)))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_that_was_killed_anywhere_ends_with_the_same_bytes(folder: Path, done: set[int]) -> None:
    whole, results = labelled(folder, "whole.csv")
    assert len(results) == 3
    again, _ = labelled(folder, "again.csv", start={index: results[index] for index in done})
    assert again == whole


def test_another_run_does_not_go_on_from_results(tmp_path: Path) -> None:
    ResultsFolder(tmp_path / "a.partial", {"teachers": "w", "options": "1"})  # which did nothing, so that it's no loss
    ResultsFolder(tmp_path / "a.partial", {"teachers": "x", "options": "1"}).put(0, b"[]")
    with pytest.raises(FaceSetError, match="run with other teachers: repeat that command to finish it, choose another"):
        ResultsFolder(tmp_path / "a.partial", {"teachers": "y", "options": "1"})
    (tmp_path / "b.partial").write_text("a letter\n")
    with pytest.raises(FaceSetError, match=r"b\.partial: is a file; choose another name, or delete it"):
        ResultsFolder(tmp_path / "b.partial", {"teachers": "y"})


def test_an_unreadable_photograph_is_counted_and_named(folder: Path) -> None:
    tasks = [DatasetPhoto(folder / name, name) for name in ("broken.jpg", "absent.jpg", "photo1.png")]
    complaints: list[FaceSetError] = []
    units, results = list(photo_units(tasks, 2)), ResultsFolder(folder / "c.partial", {})
    label_photos(units, make, results, run_locally(1), skip=complaints.append)
    report = write_labels(units, results, folder / "c.csv", 4, complaints.append)
    assert (report.photos, report.unreadable, report.labelled) == (3, 2, 1)
    for first in (complaints[:2], complaints[2:]):
        assert "broken.jpg: not an image" in str(first[0])
        assert "absent.jpg: no such photograph" in str(first[1])


def test_boxes_come_from_a_csv_of_boxes_or_of_points(folder: Path) -> None:
    (folder / "boxes.csv").write_text("image,x0,y0,x1,y1\nphoto1.png,50,60,140,130\n")
    (folder / "points.csv").write_text("image,x0,y0,x1,y1,x2,y2\nphoto1.png,50,60,139,80,70,129.5\n")
    for name in ("boxes.csv", "points.csv"):
        (task,) = label_tasks(photos_of([folder]), boxes_by_photo(folder / name), folder)
        assert task.name == "photo1.png"
        assert task.faces is not None
        np.testing.assert_array_equal([face.bbox_xyxy for face in task.faces], [[50, 60, 140, 130]])
    with pytest.raises(FaceSetError, match="none of the 1 photographs has a box"):
        label_tasks([folder / "photo2.png"], boxes_by_photo(folder / "boxes.csv"), folder)
    (folder / "boxes.csv").write_text("image,x0,y0,x1,y1\nphoto1.png,140,60,50,130\n")
    with pytest.raises(FaceSetError, match=r"boxes\.csv, line 2: .*x1 must exceed x0"):
        boxes_by_photo(folder / "boxes.csv")


def test_a_list_of_photographs_may_have_gaps_but_not_be_wrong_altogether(folder: Path) -> None:
    (folder / "list.txt").write_text("photo1.png\nabsent.png\nphoto1.png\n")
    assert [path.name for path in photos_of([folder / "list.txt"])] == ["photo1.png", "absent.png"]
    with pytest.raises(FaceSetError, match=r"photo1\.png is missing, and so are the others"):
        photos_of([folder / "list.txt"], folder / "elsewhere")


def test_names_in_the_csv_are_seen_from_its_folder_behind_links_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep/er")
    (task,) = label_tasks([folder / "photo1.png"], None, tmp_path / "link")
    assert (tmp_path / "link" / task.name).is_file()


def test_results_come_in_the_order_of_the_tasks() -> None:
    assert list(ordered_results(lambda: str, range(20), 1)) == [str(number) for number in range(20)]


def test_names_with_commas_survive(folder: Path) -> None:
    (folder / "photo1.png").rename(folder / "a, b.png")
    labelled(folder, "labels.csv")
    with (folder / "labels.csv").open(newline="") as file:
        assert "a, b.png" in {row[0] for row in csv.reader(file)}
