"""`Faces`: indexing, validation, JSON types, conversion to supervision."""

import json
import sys
import types
from typing import Any

import numpy as np
import pytest

from pfld_edge_calib import portraits
from pfld_edge_runtime import (
    IBUG_68,
    Faces,
    LandmarkError,
    MissingPackageError,
    aligned_faces,
    eye_openness,
    head_pose,
    mouth_openness,
)


def some_faces(count: int = 3, **changes: Any) -> Faces:
    random = np.random.default_rng(0)
    fields: dict[str, Any] = {
        "landmarks": random.uniform(0, 100, (count, 98, 2)).astype(np.float32),
        "boxes": random.uniform(0, 100, (count, 4)).astype(np.float32),
        "scores": np.linspace(0.9, 0.5, count).astype(np.float32),
        "confidences": np.linspace(0.8, 0.3, count).astype(np.float32),
        "ids": np.arange(count),
        "image_size": (640, 480),
    }
    return Faces(**{**fields, **changes})


def test_an_index_a_slice_a_list_and_a_mask_choose_rows_of_every_array() -> None:
    faces = some_faces()
    for chosen, rows in ((1, [1]), (-1, [2]), (slice(1, None), [1, 2]), ([2, 0], [2, 0]), (faces.scores > 0.6, [0, 1])):
        picked = faces[chosen]
        for name in ("landmarks", "boxes", "scores", "confidences", "ids"):
            np.testing.assert_array_equal(getattr(picked, name), getattr(faces, name)[rows])
        assert (picked.image_size, picked.scheme) == (faces.image_size, faces.scheme)
    assert len(faces[np.zeros(3, bool)]) == 0


def test_an_index_beyond_the_faces_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        some_faces()[3]


def test_iteration_gives_each_face_once() -> None:
    faces = some_faces()
    assert [int(face.ids[0]) for face in faces] == [0, 1, 2]
    assert all(len(face) == 1 for face in faces)
    assert list(some_faces(0)) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("landmarks", np.zeros((3, 68, 2), np.float32)),
        ("boxes", np.zeros((3, 5), np.float32)),
        ("scores", np.zeros(2, np.float32)),
        ("confidences", np.zeros((3, 98), np.float32)),
        ("ids", np.zeros(4, np.int64)),
    ],
)
def test_arrays_that_do_not_run_side_by_side_are_refused(field: str, value: object) -> None:
    with pytest.raises(LandmarkError, match=f"faces need {field} of shape"):
        some_faces(**{field: value})


def test_a_scheme_of_68_points_takes_68_points() -> None:
    assert len(some_faces(2, landmarks=np.zeros((2, 68, 2), np.float32), scheme=IBUG_68)) == 2


def test_dictionaries_survive_json_and_keep_hundredths_of_pixels() -> None:
    unknown = np.full(3, np.nan, np.float32)
    faces = some_faces(scores=unknown, ids=np.array([-1, 7, -1]))
    records = json.loads(json.dumps(faces.to_dicts(), allow_nan=False))
    assert [record["id"] for record in records] == [None, 7, None]
    assert [record["score"] for record in records] == [None] * 3
    assert records[0]["confidence"] == pytest.approx(0.8)
    for record, landmarks, box in zip(records, faces.landmarks, faces.boxes, strict=True):
        np.testing.assert_allclose(record["landmarks"], landmarks, atol=0.005 + 1e-5)
        np.testing.assert_allclose(record["box"], box, atol=0.005 + 1e-5)
        assert all(round(value, 2) == value for pair in record["landmarks"] for value in pair)
    assert some_faces(0).to_dicts() == []


def test_what_is_read_from_faces_is_what_the_functions_read() -> None:
    points = np.stack([portrait.landmarks for portrait in portraits() if portrait.landmarks is not None])
    faces = some_faces(len(points), landmarks=points)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    np.testing.assert_array_equal(faces.head_pose().yaw, head_pose(points, (640, 480)).yaw)
    camera = [[900, 0, 320], [0, 900, 240], [0, 0, 1]]
    np.testing.assert_array_equal(
        faces.head_pose(camera).translation, head_pose(points, (640, 480), camera).translation
    )
    np.testing.assert_array_equal(faces.eye_openness(), eye_openness(points))
    np.testing.assert_array_equal(faces.mouth_openness(), mouth_openness(points))
    np.testing.assert_array_equal(faces.aligned(image, 64), aligned_faces(image, points, 64))


def test_supervision_gets_its_key_points() -> None:
    supervision = pytest.importorskip("supervision", reason="the package supervision is not installed")
    faces = some_faces()
    found = faces.to_supervision()
    assert isinstance(found, supervision.KeyPoints)
    np.testing.assert_array_equal(found.xy, faces.landmarks)
    assert len(found[:2]) == 2
    assert len(some_faces(0).to_supervision()) == 0


class OldKeyPoints:
    """The fields of supervision.KeyPoints before 0.29."""

    def __init__(self, xy: Any, class_id: Any = None, confidence: Any = None, data: Any = None) -> None:
        self.xy, self.class_id, self.keypoint_confidence, self.data = xy, class_id, confidence, data


class NewKeyPoints:
    """The fields since 0.29."""

    def __init__(
        self,
        xy: Any,
        class_id: Any = None,
        keypoint_confidence: Any = None,
        detection_confidence: Any = None,
        visible: Any = None,
        data: Any = None,
        *,
        confidence: Any = None,
    ) -> None:
        assert confidence is None, "deprecated since 0.29"
        assert visible is None
        self.xy, self.class_id, self.data = xy, class_id, data
        self.keypoint_confidence, self.detection_confidence = keypoint_confidence, detection_confidence


@pytest.mark.parametrize("key_points", [OldKeyPoints, NewKeyPoints])
def test_old_and_new_supervision_get_the_fields_that_they_know(
    key_points: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("supervision")
    module.KeyPoints = key_points  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", module)
    faces = some_faces()
    found = faces.to_supervision()
    np.testing.assert_array_equal(found.keypoint_confidence, np.repeat(faces.confidences[:, None], 98, axis=1))
    np.testing.assert_array_equal(found.data["tracker_id"], faces.ids)
    assert list(found.data["class_name"]) == ["face"] * 3
    assert found.class_id.tolist() == [0, 0, 0]
    if key_points is NewKeyPoints:
        np.testing.assert_array_equal(found.detection_confidence, faces.scores)
    unknown = np.full(3, np.nan, np.float32)
    untold = some_faces(scores=unknown, confidences=unknown, ids=np.full(3, -1)).to_supervision()
    assert untold.keypoint_confidence is None
    assert "tracker_id" not in untold.data


def test_without_supervision_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingPackageError, match="pip install supervision") as caught:
        some_faces().to_supervision()
    assert "\n" not in str(caught.value)
