"""The static folder of the demo: page, models, portrait and onnxruntime-web."""

import json
from collections.abc import Sequence
from pathlib import Path

from pfld_edge.demo.web_runtime import web_runtime_files
from pfld_edge.errors import InputError
from pfld_edge.output_file import write_atomically

__all__ = ["PAGE_FILES", "write_page_folder"]

_SITE = Path(__file__).parent / "site"
PAGE_FILES = ("index.html", "style.css", "main.js", "landmarker.js", "openness.js", "box.js")
"""The page's own files."""


def write_page_folder(folder: Path, models: Sequence[Path], web_runtime: Path | None = None) -> None:
    """Write everything that the page loads, so that any web server can host it.

    Args:
        folder: Where to; files of these names are replaced.
        models: Plain ONNX files with a contract; each becomes an end-to-end graph.
        web_runtime: As for `web_runtime_files`.

    Raises:
        InputError: A model has no contract, or onnxruntime-web can't be had.
        OSError: A file can't be read or written.
    """
    import onnx

    from pfld_edge_calib import PORTRAITS, portraits
    from pfld_edge_convert.contract_io import read_contract
    from pfld_edge_convert.end_to_end import end_to_end_model

    files = {name: (_SITE / name).read_bytes() for name in PAGE_FILES}
    names = []
    for index, path in enumerate(models):
        try:
            network = onnx.load(path)
        except OSError:
            raise
        except Exception as error:
            raise InputError(f"{path}: not an ONNX file") from error
        contract = read_contract(network)
        if contract is None:
            raise InputError(f"{path}: carries no contract; write it with `pfld-edge convert`")
        file = f"model{index}.onnx"
        files[file] = end_to_end_model(network, contract).SerializeToString()
        names.append({"name": path.name, "file": file})
    files["portrait.jpg"] = (PORTRAITS / "grace_hopper.jpg").read_bytes()
    (box,) = [face.bbox_xyxy.tolist() for face in portraits() if face.image.stem == "grace_hopper"]
    files["demo.json"] = json.dumps({"models": names, "box": box}).encode()
    files.update(web_runtime_files(web_runtime))
    for name, data in files.items():
        write_atomically(folder / name, data)
