"""Makes the runtime's face detector: an INT8 file of a trained fp32 one, by the product's quantizer.

    python train/recipes/detector_export.py DETECTOR.onnx PHOTOS [--out FILE]

DETECTOR takes ``(1, 3, H, W)`` BGR ``(p - 128) / 128`` and gives the maps that `PfldEdgeDetector` decodes. Activation
ranges and biases come from PHOTOS, a folder, as the runtime's letterbox shows them at 320 pixels. The convolutions that
make the maps stay in float: scores, logarithms of sizes and offsets share no scale, and they are 0.5 % of the work. The
INT8 file takes ``(1, 3, H, W)`` uint8 pixels.
"""

from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto

from pfld_edge_calib import read_photo
from pfld_edge_calib.files import replacing
from pfld_edge_convert.formats.qoperator import write_qoperator
from pfld_edge_convert.passes.base import GraphIndex
from pfld_edge_convert.passes.canonical_form import default_passes
from pfld_edge_convert.passes.int8_preparation import FoldNormalization
from pfld_edge_convert.quantization.plan import Grid, Plan, integer_tensors, weighted_layers
from pfld_edge_convert.quantization.ranges import align_addition_scales, collect_histograms, grids_from
from pfld_edge_convert.quantization.reconstruction import initial_plan, reconstruct
from pfld_edge_convert.quantization.settings import target_named
from pfld_edge_runtime.arrays import Uint8Array
from pfld_edge_runtime.detection.catalogue import BUNDLED_DETECTOR
from pfld_edge_runtime.detection.onnx_detector import Letterbox

SIDE = 320
_FOLD = FoldNormalization((128.0,) * 3, (128.0,) * 3)
_RECONSTRUCTED = 48
"""Photographs whose activations are kept in memory at once."""


@click.command()
@click.argument("detector", type=click.Path(exists=True, path_type=Path))
@click.argument("photos", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=BUNDLED_DETECTOR, show_default=False)
@click.option("--count", default=192, show_default=True, help="Photographs to calibrate on.")
@click.option("--ranges", default="minmax", show_default=True, help="Range method of the quantizer.")
def main(detector: Path, photos: Path, out: Path, count: int, ranges: str) -> None:
    """Write the INT8 file."""
    model = onnx.load(detector)
    for step in default_passes():
        model = step(model).model
    model = _FOLD(model).model
    paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    inputs = np.stack([letterboxed(path) for path in paths[:: max(1, len(paths) // count)][:count]])
    written = write_qoperator(made_plan(model, inputs, ranges))
    take_planes(written)
    onnx.checker.check_model(written)
    with replacing(out) as file:
        file.write(written.SerializeToString())
    click.echo(f"{out}: {out.stat().st_size} bytes, {len(inputs)} photographs, {ranges} ranges")


def letterboxed(path: Path) -> Uint8Array:
    """A photograph as the runtime's letterbox shows it, on a square of black: ``(3, 320, 320)`` BGR."""
    photo = read_photo(path)
    box = Letterbox.inside((photo.shape[1], photo.shape[0]), (SIDE, SIDE), enlarge=True)
    return box.sample(photo, swap_channels=False)


def made_plan(model: onnx.ModelProto, inputs: Uint8Array, ranges: str) -> Plan:
    """Collect ranges, round the weights with feedback and correct the biases."""
    index = GraphIndex(model)
    names = integer_tensors(index, weighted_layers(index))
    centered = inputs.astype(np.float32) - _FOLD.zero_point
    histograms = collect_histograms(model, names, (centered[start : start + 8] for start in range(0, len(inputs), 8)))
    grids = align_addition_scales(index, grids_from(index, histograms, ranges))
    grids[model.graph.input[0].name] = Grid(1.0, _FOLD.zero_point)
    for node in index.graph.node:
        # Copied pixels keep their grid, in the order of the graph.
        if node.op_type == "Resize" and node.input[0] in grids:
            grids[node.output[0]] = grids[node.input[0]]
    in_float = frozenset(value.name for value in model.graph.output)
    limits = target_named("portable").limits
    plan = initial_plan(model, grids, limits, in_float, uint8_input=True)
    some = slice(0, _RECONSTRUCTED)
    return reconstruct(plan, centered[some], np.ascontiguousarray(inputs[some].transpose(0, 2, 3, 1)), limits)


def take_planes(written: onnx.ModelProto) -> None:
    """Let the graph begin behind the transposition: planes in place of pixels, ``(1, 3, H, W)``."""
    graph = written.graph
    transpose = graph.node[0]
    assert transpose.op_type == "Transpose"  # noqa: S101 - what the quantizer writes for uint8 input
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = [name if value == transpose.output[0] else value for value in node.input]
    graph.node.remove(transpose)
    shape: list[str | int | None] = ["batch", 3, "height", "width"]
    graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(name, TensorProto.UINT8, shape))


if __name__ == "__main__":
    main()
