"""The page's modules, run by Node, compute what the runtime computes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfld_edge import demo
from pfld_edge.demo.page import _detector
from pfld_edge_calib import portraits, read_photo
from pfld_edge_runtime import (
    BUNDLED_DETECTOR,
    WFLW_98,
    FaceLandmarker,
    eye_openness,
    head_pose,
    mouth_openness,
    open_detector,
)
from pfld_edge_runtime.crop import turn_points
from pfld_edge_runtime.detection.onnx_detector import Letterbox
from pfld_edge_runtime.geometry.pose import FACE_SHAPE, RIGID_POINTS, project
from pfld_edge_runtime.geometry.roll import follow_roll, turned_box

SITE = Path(str(demo.__file__)).parent / "site"
NODE = shutil.which("node") or ""
pytestmark = pytest.mark.skipif(not NODE, reason="node is not installed")


def in_node(tmp_path: Path, module: str, body: str, given: object) -> Any:
    """Run `body`, which sees `page` (the module) and `given`, and returns its answer."""
    shutil.copy(SITE / f"{module}.js", tmp_path / f"{module}.mjs")
    (tmp_path / "given.json").write_text(json.dumps(given))
    script = (
        f'import * as page from "./{module}.mjs"; import {{ readFileSync }} from "node:fs";'
        f'const given = JSON.parse(readFileSync("given.json")); const answer = (() => {{ {body} }})();'
        "console.log(JSON.stringify(answer));"
    )
    (tmp_path / "run.mjs").write_text(script)
    done = subprocess.run([NODE, "run.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def turned_faces(count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """``(N, 98, 2)``: the mean face turned up to 80 degrees, seen by a camera 640 wide, with noise."""
    rng = np.random.default_rng(0)
    vectors = rng.uniform(-1, 1, (count, 3)) * (0.7, 1.4, 0.9)
    cosine, sine = np.cos(vectors), np.sin(vectors)
    zero, one = np.zeros(count), np.ones(count)

    def rotations(axis: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        c, s = cosine[:, axis], sine[:, axis]
        rows = [[one, zero, zero, zero, c, -s, zero, s, c], [c, zero, s, zero, one, zero, -s, zero, c]]
        rows.append([c, -s, zero, s, c, zero, zero, zero, one])
        return np.stack(rows[axis], axis=-1).reshape(-1, 3, 3)

    places = rng.uniform((-150, -100, 500), (150, 100, 1500), (count, 3))
    camera = np.array([[640.0, 0, 320], [0, 640.0, 240], [0, 0, 1]])
    faces = rng.uniform(200, 300, (count, 98, 2))
    seen = project(FACE_SHAPE, rotations(2) @ rotations(1) @ rotations(0), places, camera)
    faces[:, RIGID_POINTS] = seen + rng.normal(0, 0.5, seen.shape)
    return faces


def test_head_pose(tmp_path: Path) -> None:
    faces = turned_faces(200)
    given = {"faces": faces.reshape(200, -1).tolist(), "rigid": {"points": RIGID_POINTS, "shape": FACE_SHAPE.tolist()}}
    body = "return given.faces.map((face) => page.headPose(face, 640, 480, given.rigid));"
    found = in_node(tmp_path, "pose", body, given)
    expected = head_pose(faces, (640, 480))
    for angle in ("yaw", "pitch", "roll"):
        np.testing.assert_allclose([pose[angle] for pose in found], getattr(expected, angle), atol=0.01)


def test_a_face_without_extent_has_no_pose(tmp_path: Path) -> None:
    given = {"points": RIGID_POINTS, "shape": FACE_SHAPE.tolist()}
    found = in_node(tmp_path, "pose", "return page.headPose(new Array(196).fill(7), 640, 480, given);", given)
    assert found == {"yaw": None, "pitch": None, "roll": None}  # JSON's form of NaN


def test_openness(tmp_path: Path) -> None:
    points = np.random.default_rng(1).uniform(0, 200, (20, 98, 2))
    body = "return given.map((face) => [...page.eyeOpenness(face), page.mouthOpenness(face)]);"
    found = np.array(in_node(tmp_path, "openness", body, points.reshape(20, -1).tolist()))
    np.testing.assert_allclose(found[:, :2], eye_openness(points), rtol=1e-4)
    np.testing.assert_allclose(found[:, 2], mouth_openness(points), rtol=1e-4)


def test_boxes_follow_keys_and_landmarks(tmp_path: Path) -> None:
    body = """const box = [10, 20, 50, 80];
        return [page.keyedBox(box, "ArrowLeft", false, 5), page.keyedBox(box, "ArrowUp", true, 5),
        page.keyedBox(box, "a", false, 5), page.keyedBox([0, 0, 12, 12], "ArrowLeft", true, 5),
        page.nextBox(new Array(196).fill(NaN), box), page.betweenCorners([9, 1], [2, 8])];"""
    moved, grown, other, smallest, kept, drawn = in_node(tmp_path, "box", body, None)
    assert (moved, other, smallest, kept) == ([5, 20, 45, 80], None, None, [10, 20, 50, 80])
    assert (grown, drawn) == ([10, 15, 50, 85], [2, 1, 9, 8])


def test_the_next_crop_is_upright(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    upright = FaceLandmarker()(read_photo(portraits()[0].image), [[173, 157, 354, 333]], "bgr")
    faces = turn_points(upright.repeat(60, axis=0), np.full((60, 2), 300.0), rng.uniform(-180, 180, 60))
    faces[::7, :, 1] = 0  # no face: it keeps its roll
    rolls = rng.choice([0.0, 50.0, -170.0], 60)
    given = [[face, [0, 0, 9, 9, roll]] for face, roll in zip(faces.reshape(60, -1).tolist(), rolls, strict=True)]
    found = in_node(tmp_path, "box", "return given.map(([face, last]) => page.nextBox(face, last));", given)
    expected = follow_roll(faces, WFLW_98, rolls)
    assert np.count_nonzero(expected != rolls) > 20
    np.testing.assert_allclose([box[4] if len(box) > 4 else 0 for box in found], expected, atol=1e-6)
    np.testing.assert_allclose([box[:4] for box in found], turned_box(faces, expected), atol=1e-6)


@pytest.mark.parametrize("name", ["bundled", "yunet_n_dynamic.onnx"])
def test_the_detector(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    path = BUNDLED_DETECTOR if name == "bundled" else request.getfixturevalue("shared") / "models/detectors" / name
    _, settings = _detector(path)
    detector = open_detector(path)
    photo = read_photo(portraits()[0].image)[:, :, ::-1]
    height, width = photo.shape[:2]
    lies = Letterbox.within((width, height), type(detector).largest_side, 32, enlarge=name == "bundled")
    pixels = lies.sample(photo, swap_channels=True).transpose(1, 2, 0)
    session = detector._session  # the raw outputs, to decode them elsewhere
    planes = pixels.transpose(2, 0, 1)[None].astype(settings["dtype"])
    values = session.run(None, {session.get_inputs()[0].name: planes})
    outputs = {
        output.name: {"data": np.asarray(value).ravel().tolist()}
        for output, value in zip(session.get_outputs(), values, strict=True)
    }
    given = {"outputs": outputs, "size": [width, height], "settings": settings}
    body = """const { inner, canvas } = page.letterbox(...given.size, given.settings);
        const found = page.decode(given.outputs, canvas, given.settings);
        return { inner, canvas, found, box: page.landmarkBox(found[0], given.settings.map) };"""
    found = in_node(tmp_path, "detector", body, given)
    assert (found["inner"], found["canvas"]) == (list(lies.inner), list(lies.canvas))
    expected = detector._detect_in(photo, lies, "rgb")[:, :5]
    expected[:, :4] *= np.tile(np.divide(lies.inner, lies.photo), 2).astype(np.float32)
    assert len(expected) == 1
    np.testing.assert_allclose(np.array(found["found"]), expected, atol=1e-2)
    np.testing.assert_allclose(found["box"], type(detector).box_map(expected[:1, :4].astype(np.float64))[0], atol=1e-2)
