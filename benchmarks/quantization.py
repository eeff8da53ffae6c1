"""What each step of the INT8 quantizer gives, and what onnxruntime's own gives.

    PFLD_EDGE_SHARED=<folder> python benchmarks/quantization.py PUBLISHED.onnx [PUBLISHED.onnx | CHECKPOINT.pth]...

The networks go through import-onnx and the passes of `pfld-edge convert`, are calibrated on faces that a detector
finds in WFLW's unlabelled photographs, and judged on the faces of its test list. Speeds are medians of interleaved
runs, as multiples of the first file's, untouched.
"""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from harness import print_table, shared_folder
from pfld_edge.commands.convert import judged_faces
from pfld_edge.console import SkippedFiles
from pfld_edge_calib import nme_per_face
from pfld_edge_calib.evaluation.drift import paired_drift
from pfld_edge_convert.calibration import CalibrationSet, CalibrationSource, calibration_crops, sample_crops
from pfld_edge_convert.int8_stage import LabelledCrops
from pfld_edge_convert.model_file import checkpoint_contract, run_model
from pfld_edge_convert.onnx_import import import_onnx
from pfld_edge_convert.pipeline import convert
from pfld_edge_convert.quantization.mixed_precision import deviation_per_face, face_times
from pfld_edge_convert.quantization.quantizer import Quantizer
from pfld_edge_convert.quantization.settings import QuantizationSettings
from pfld_edge_runtime import Contract, LandmarkModel, prepare_input
from pfld_edge_runtime.arrays import Float32Array, Float64Array, Uint8Array
from pfld_edge_train.checkpoint import load_model, save_checkpoint

NAIVE = QuantizationSettings(
    ranges="minmax", equalize=0, feedback=False, correct_bias=False, uint8_input=False, target="x86-vnni"
)
UINT8_INPUT = replace(NAIVE, uint8_input=True)
EQUALIZED = replace(UINT8_INPUT, equalize=0.75, equalize_by="minmax")
CORRECTED = replace(EQUALIZED, correct_bias=True)
FEEDBACK = replace(CORRECTED, feedback=True)
STEPS = {
    "baseline: min-max, nearest": NAIVE,
    "+ uint8 input": UINT8_INPUT,
    "+ channel equalization": EQUALIZED,
    "+ bias correction": CORRECTED,
    "+ rounding with error feedback": FEEDBACK,
    "+ ranges chosen (x86-vnni)": QuantizationSettings(target="x86-vnni"),
    "portable (the default)": QuantizationSettings(),
}
OURS_IN_SHORT = ("+ ranges chosen (x86-vnni)", "portable (the default)")


class Row(NamedTuple):
    """An INT8 network, and how to feed it."""

    name: str
    model: onnx.ModelProto
    contract: Contract


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--short", is_flag=True, help="Leave out the steps between onnxruntime's quantizer and ours.")
@click.option("--faces", default=256, show_default=True, help="Calibration faces.")
@click.option("--seed", default=0, show_default=True, help="Of their choice.")
def main(files: tuple[Path, ...], short: bool, faces: int, seed: int) -> None:
    """Print a table for each of FILES: published ONNX files, the first of them the reference, and checkpoints."""
    shared = shared_folder()
    logging.disable(logging.WARNING)
    reference = onnx.load(str(files[0]))
    for path in files:
        model, contract = float_network(path)
        chosen = found_faces(shared, contract, model, faces, seed)
        judged = judged_faces(shared / "data/WFLW", None, contract, SkippedFiles())
        rows = list(quantized(model, contract, chosen.crops, short))
        report(path.name, chosen.source, model, contract, judged, rows, reference)


def float_network(path: Path) -> tuple[onnx.ModelProto, Contract]:
    """A file's float network as our conversion writes it."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, output = path, Path(folder, "network.onnx")
        if path.suffix == ".onnx":
            checkpoint = Path(folder, "checkpoint.pth")
            save_checkpoint(checkpoint, import_onnx(path))
        network, loaded = load_model(checkpoint)
        contract = checkpoint_contract(loaded)
        convert(network, contract, output, sample_crops(contract))
        return onnx.load(str(output)), contract


def found_faces(shared: Path, contract: Contract, model: onnx.ModelProto, faces: int, seed: int) -> CalibrationSet:
    """Faces of the unlabelled photographs, in boxes that the float network itself refines."""
    wflw = shared / "data/WFLW"

    source = CalibrationSource(
        wflw / "unlabelled_images.txt",
        wflw / "WFLW_images",
        shared / "models/detectors/yunet_n_dynamic.onnx",
        LandmarkModel(contract, lambda crops: run_model(model, prepare_input(crops, contract))),
        faces,
        seed,
    )
    return calibration_crops(source, contract)


def quantized(model: onnx.ModelProto, contract: Contract, crops: Uint8Array, short: bool) -> Iterator[Row]:
    """The network by onnxruntime's quantizer, and by ours step by step."""
    inputs = np.asarray(prepare_input(crops, contract), np.float32)
    yield Row("onnxruntime, QDQ, defaults", by_onnxruntime(model, inputs), contract)
    yield Row(
        "onnxruntime, QOperator, per channel",
        by_onnxruntime(
            model,
            inputs,
            quant_format=QuantFormat.QOperator,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["Conv", "Relu", "Add", "Concat", "GlobalAveragePool"],
        ),
        contract,
    )
    for name, settings in STEPS.items():
        if not short or name in OURS_IN_SHORT:
            result = Quantizer(model, crops, contract, settings).make()
            yield Row(name, result.model, result.contract)


def by_onnxruntime(model: onnx.ModelProto, inputs: Float32Array, **options: object) -> onnx.ModelProto:
    """Quantize with onnxruntime.quantization."""

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        parts = iter(inputs[:, None])

        def get_next(self) -> dict[str, Float32Array] | None:
            part = next(self.parts, None)
            return None if part is None else {model.graph.input[0].name: part}

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("float.onnx", "int8.onnx")]
        onnx.save(model, files[0])
        quantize_static(str(files[0]), str(files[1]), Reader(), **options)
        return onnx.load(str(files[1]))


def report(
    name: str,
    source: str,
    model: onnx.ModelProto,
    contract: Contract,
    judged: LabelledCrops,
    rows: list[Row],
    reference: onnx.ModelProto,
) -> None:
    """Print a table in Markdown."""
    timed = {"reference": reference, "fp32": model, **{row.name: row.model for row in rows}}
    times = {name: found.milliseconds for name, found in face_times(timed, rounds=200).items()}
    shape, points = judged.landmarks.shape, contract.landmarks.normalizing_points

    def landmarks(model: onnx.ModelProto, contract: Contract) -> Float32Array:
        return run_model(model, prepare_input(judged.crops, contract)).reshape(shape)

    def nme(found: Float32Array) -> Float64Array:
        return nme_per_face(found, judged.landmarks, points)

    expected = landmarks(model, contract)
    base = nme(expected)
    click.echo(f"\n### {name}\n\nCalibrated on {source}; {len(base)} test faces, NME {base.mean():.5f} in float.")
    table = [["fp32, converted", "", "", "", kilobytes(model), f"{times['reference'] / times['fp32']:.2f}"]]
    for row in rows:
        found = landmarks(row.model, row.contract)
        now = nme(found)
        every = paired_drift(now, base, judged.photographs)
        large_pose = now[judged.large_pose].mean() / base[judged.large_pose].mean() - 1
        deviation = deviation_per_face(found, expected, points).mean()
        speed = f"{times['reference'] / times[row.name]:.2f}"
        drifts = [f"{every.value:+.2%} ({every.low:+.2%} to {every.high:+.2%})", f"{large_pose:+.2%}"]
        table.append([row.name, *drifts, f"{deviation:.4f}", kilobytes(row.model), speed])
    head = ["", "NME drift (95 % interval)", "large pose", "mean deviation", "kB", "times as fast as the reference"]
    print_table(head, table)


def kilobytes(model: onnx.ModelProto) -> str:
    """Size of a file, without the contract that goes into it."""
    return f"{len(model.SerializeToString()) / 1000:.0f}"


if __name__ == "__main__":
    main()
