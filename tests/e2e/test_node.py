"""The end-to-end graphs run in JavaScript, by the code of docs/end-to-end-graph.md, and find what Python finds.

onnxruntime-web runs in Node as WebAssembly, the same that browsers load. Its version is pinned in tests/js; npm fetches
it once into pytest's cache folder.
"""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from pfld_edge_calib import portraits, read_photo
from pfld_edge_convert.end_to_end import end_to_end_contract, end_to_end_model, end_to_end_path
from pfld_edge_convert.model_file import read_contract, write_model
from pfld_edge_runtime import BUNDLED_MODEL, FaceLandmarker
from pfld_edge_runtime.arrays import Float32Array, Uint8Array

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests/js"
DOCUMENT = ROOT / "docs/end-to-end-graph.md"

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="node and npm are not installed"
)


@pytest.fixture(scope="module")
def modules(request: pytest.FixtureRequest) -> Path:
    """The folder `node_modules` with the pinned packages."""
    lock = (SCRIPTS / "package-lock.json").read_bytes()
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir(f"js-{hashlib.sha256(lock).hexdigest()[:12]}")
    ready = folder / "ready"
    if not ready.exists():
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SCRIPTS / name, folder)
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
        # What npm says of a lock file that doesn't fit: our mistake, not the network's.
        assert not re.search("EUSAGE|EINTEGRITY", done.stderr), done.stderr
        if done.returncode:
            pytest.skip(f"npm can't fetch onnxruntime-web: {' '.join(done.stderr.split())[:200]}")
        ready.touch()
    return folder / "node_modules"


@pytest.fixture(scope="module")
def plain_models(converted_s: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The bundled networks, s as float and m as INT8 file, each with its end-to-end graph beside it."""
    folder = tmp_path_factory.mktemp("models")
    quantized = Path(shutil.copy(BUNDLED_MODEL, folder / "face.int8.onnx"))
    network = onnx.load(quantized)
    carried = read_contract(network)
    assert carried is not None
    write_model(end_to_end_model(network, carried), end_to_end_contract(carried), end_to_end_path(quantized))
    return [converted_s, quantized]


Images = list[tuple[Uint8Array, Float32Array]]


@pytest.fixture(scope="module")
def images() -> Images:
    """RGB photographs with boxes: of each portrait the face's own, and one half of which lies above and left of it."""
    shown: Images = []
    for face in portraits():
        box = face.bbox_xyxy
        boxes = np.stack([box, box - np.tile((box[:2] + box[2:]) / 2, 2)]).astype(np.float32)
        shown.append((np.ascontiguousarray(read_photo(face.image)[:, :, ::-1]), boxes))
    return [*shown, (np.zeros((40, 30, 3), np.uint8), np.zeros((0, 4), np.float32))]


@pytest.fixture(scope="module")
def found_in_node(
    modules: Path, plain_models: list[Path], images: Images, tmp_path_factory: pytest.TempPathFactory
) -> list[list[Float32Array]]:
    """What the document's JavaScript finds in each image with each model.

    It gets raw RGBA pixels, so that no JPEG decoder has a say, and all of them at once: Node takes seconds to start.
    """
    folder = tmp_path_factory.mktemp("node")
    (code,) = re.findall(r"```javascript\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    module = folder / "documented.mjs"
    module.write_text(code, encoding="utf-8")
    (folder / "node_modules").symlink_to(modules, target_is_directory=True)
    fed = []
    for number, (image, boxes) in enumerate(images):
        height, width = image.shape[:2]
        pixels = folder / f"pixels-{number}"
        pixels.write_bytes(np.dstack([image, np.full((height, width), 255, np.uint8)]).tobytes())
        fed.append({"pixels": str(pixels), "width": width, "height": height, "boxes": boxes.tolist()})
    request = {"models": [str(end_to_end_path(path)) for path in plain_models], "images": fed}
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    command = ["node", str(SCRIPTS / "find_landmarks.mjs"), str(module), str(folder / "request.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    return [[np.array(points, np.float32).reshape(-1, 98, 2) for points in answer] for answer in answers]


@pytest.mark.parametrize("number", [0, 1], ids=lambda number: portraits()[number].image.stem)
def test_javascript_finds_the_landmarks_that_python_finds(
    found_in_node: list[list[Float32Array]], plain_models: list[Path], images: Images, number: int
) -> None:
    for path, landmarks in zip(plain_models, found_in_node[number], strict=True):
        expected = FaceLandmarker(path)(*images[number], "rgb")
        difference = float(np.abs(landmarks - expected).max())
        print(f"{path.name}: {difference:.2g} px from Python")  # noqa: T201 - the figure in the document
        assert difference < 0.05


def test_javascript_takes_photographs_without_faces(found_in_node: list[list[Float32Array]]) -> None:
    assert [landmarks.shape for landmarks in found_in_node[2]] == [(0, 98, 2), (0, 98, 2)]
