"""The static folder of the demo: page, models, portrait and onnxruntime-web."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pfld_edge.demo.web_runtime import web_runtime_files
from pfld_edge.errors import InputError
from pfld_edge.output_file import write_atomically

__all__ = ["write_page_folder"]

_SITE = Path(__file__).parent / "site"


def write_page_folder(
    folder: Path, models: Sequence[Path], web_runtime: Path | None = None, detector: Path | None = None
) -> None:
    """Write everything that the page loads, so that any web server can host it.

    Args:
        folder: Where to; files of these names are replaced.
        models: Plain ONNX files with a contract; each becomes an end-to-end graph.
        web_runtime: As for `web_runtime_files`.
        detector: A YuNet file of free input size, which finds the faces; None to let people draw the box.

    Raises:
        InputError: A model has no contract, the detector is another network, or onnxruntime-web can't be had.
        ModelFileError: A model or the detector is no ONNX file, or names weights outside of its folder.
        OSError: A file can't be read or written.
    """
    from pfld_edge_calib import PORTRAITS, portraits
    from pfld_edge_convert.contract_io import read_contract
    from pfld_edge_convert.end_to_end import end_to_end_model
    from pfld_edge_convert.onnx_file import load_onnx
    from pfld_edge_runtime.detectors import YuNet
    from pfld_edge_runtime.reading.face_shape import FACE_SHAPE, RIGID_POINTS

    files = {path.name: path.read_bytes() for path in _SITE.iterdir()}
    names = []
    for index, path in enumerate(models):
        network = load_onnx(path)
        contract = read_contract(network)
        if contract is None:
            raise InputError(f"{path}: carries no contract; write it with `pfld-edge convert`")
        file = f"model{index}.onnx"
        files[file] = end_to_end_model(network, contract).SerializeToString()
        names.append({"name": path.name, "file": file})
    files["portrait.jpg"] = (PORTRAITS / "grace_hopper.jpg").read_bytes()
    (box,) = [face.bbox_xyxy.tolist() for face in portraits() if face.image.stem == "grace_hopper"]
    page: dict[str, object] = {"models": names, "box": box}
    # The page computes head pose from the runtime's own shape: there is one copy of it.
    page["pose"] = {"points": list(RIGID_POINTS), "shape": FACE_SHAPE.tolist()}
    if detector is not None:
        files["detector.onnx"] = _checked_detector(detector)
        page["detector"] = {"file": "detector.onnx", "map": asdict(YuNet.box_map)}
    files["demo.json"] = json.dumps(page).encode()
    files.update(web_runtime_files(web_runtime))
    for name, data in files.items():
        write_atomically(folder / name, data)


def _checked_detector(path: Path) -> bytes:
    """Read a detector's file if the page can use it."""
    from pfld_edge_runtime.detectors import YuNet
    from pfld_edge_runtime.session import open_session

    session = open_session(path)
    if not YuNet.reads(session) or any(isinstance(side, int) for side in session.get_inputs()[0].shape[2:]):
        raise InputError(f"{path}: the page needs a YuNet file of free input size (pfld-edge detector download yunet)")
    return path.read_bytes()
