"""What SECURITY.md promises and no other test shows."""

import re
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pfld_edge.cli import run
from pfld_edge_calib import FaceSetError, read_photo
from pfld_edge_runtime import FaceLandmarker, ModelFileError

ROOT = Path(__file__).parents[2]


def outside_weights(path: Path, location: str) -> Path:
    """A small network whose weights it says to be somewhere else."""
    weight = numpy_helper.from_array(np.zeros((196, 3), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * 196 * 3))):
        weight.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
    ]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 112, 112])
    leave = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 196])
    graph = helper.make_graph(nodes, "g", [entry], [leave], [weight])
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


@pytest.mark.parametrize("kind", ["relative", "absolute"])
@pytest.mark.parametrize("command", ["inspect", "import-onnx", "bench", "evaluate"])
def test_weights_outside_of_the_folder_are_refused(
    tmp_path: Path, kind: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4 * 196 * 3))
    (tmp_path / "models").mkdir()
    location = "../secret.bin" if kind == "relative" else str(tmp_path / "secret.bin")
    model = outside_weights(tmp_path / "models/m.onnx", location)
    labels = ROOT / "calib/pfld_edge_calib/portraits/landmarks.csv"
    more = {"import-onnx": ["-o", str(tmp_path / "out.pth")], "evaluate": ["--data", str(labels)]}.get(command, [])
    assert run([command, str(model), *more]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "m.onnx" in error
    assert not (tmp_path / "out.pth").exists()


def test_the_runtime_refuses_them_too(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4 * 196 * 3))
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelFileError, match=r"m\.onnx"):
        FaceLandmarker(outside_weights(tmp_path / "models/m.onnx", "../secret.bin"))


def test_a_picture_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FaceSetError, match="can't be unpacked"):
        read_photo(tmp_path / "bomb.png")
    # Unpacked it would be 10.8 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_every_test_that_the_page_names_exists() -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text()):
        text = (ROOT / file).read_text()
        assert not name or f"def {name}(" in text
