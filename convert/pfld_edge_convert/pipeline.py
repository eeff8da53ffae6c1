"""Conversion of a trained network to files for devices: export, optimize, quantize, check, write."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from pfld_edge_convert import model_file
from pfld_edge_convert.end_to_end import (
    end_to_end_contract,
    end_to_end_model,
    end_to_end_path,
    largest_difference,
    pixel_fingerprint,
)
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.export import export_onnx
from pfld_edge_convert.formats import format_named
from pfld_edge_convert.int8_stage import Int8Outcome, Int8Request, make_int8
from pfld_edge_convert.model_stats import model_stats
from pfld_edge_convert.passes.base import PassResult, run_passes
from pfld_edge_convert.passes.canonical_form import default_passes
from pfld_edge_convert.reparameterize import reparameterize
from pfld_edge_runtime import Contract, LandmarkModel, prepare_input
from pfld_edge_runtime.arrays import Float32Array, Uint8Array

_LARGEST_DIFFERENCE = 1e-4
"""Of the float file to torch, in fractions of the crop: a hundredth of a pixel at 112."""


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """A file that was written, and its cost.

    Attributes:
        path: The file.
        size: Bytes.
        macs: Multiply-accumulates a face.
        parameters: Weights and biases.
        nodes: Nodes of the graph; of other formats than QOperator, those of the same network in that format.
        max_difference: Largest absolute difference to the given network on the samples, fractions of the crop; of an
            end-to-end graph, see `pixel_difference`, that of the plain file that it was made from.
        pixel_difference: Of an end-to-end graph: the largest difference to the runtime with that plain file, on the
            bundled portraits, pixels. None of a plain file.
    """

    path: Path
    size: int
    macs: int
    parameters: int
    nodes: int
    max_difference: float
    pixel_difference: float | None = None


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """Result of a conversion.

    Attributes:
        files: The float file, then an INT8 file for each format that was asked for; the float file and the QOperator
            file each before its end-to-end graph where those were asked for.
        int8: How the INT8 network was made, where one was asked for.
    """

    files: tuple[ConvertedFile, ...]
    passes: tuple[PassResult, ...]
    int8: Int8Outcome | None = None


def int8_path(output: Path) -> Path:
    """Name of the QOperator file beside a float file: ``face.onnx`` has ``face.int8.onnx``."""
    return output.with_suffix(format_named("qoperator").suffix)


def convert(
    model: nn.Module | onnx.ModelProto,
    contract: Contract,
    output: Path,
    crops: Uint8Array,
    int8: Int8Request | None = None,
    *,
    end_to_end: bool = False,
) -> ConversionReport:
    """Convert a network: reparameterize, export, optimize, quantize, wrap, write.

    Nothing is written before everything is made and checked, and then whole files at once, so that a run that fails or
    is killed leaves what was there before.

    Args:
        model: A trained network of `pfld_edge_train.models`, with or without training branches, or an ONNX network in
            our form (`landmark_graph`); left as it is.
        contract: How the network was trained; the files carry it with a fingerprint of their own.
        output: The float file; see `int8_path` and `end_to_end_path` for the others. Its folder is made if need be.
        crops: ``(N, S, S, 3)`` uint8 faces, on which every step is checked and differences are measured.
        int8: What the INT8 files are to be; none is made without.
        end_to_end: Also make of the float and the QOperator file a graph from photograph and boxes to pixels, checked
            against the runtime.

    Raises:
        ConvertError: A step failed or changed what the network computes, or a file can't be written.
        CalibrationError: The calibration faces can't be used.
        FellShortError: The INT8 network drifts further than asked, or is slower than the float one.
    """
    _check_crops(crops, contract)
    samples = np.asarray(prepare_input(crops, contract), np.float32)
    if isinstance(model, onnx.ModelProto):
        exported, expected = model, model_file.run_model(model, samples)
    else:
        expected = _torch_output(model, contract, samples)
        exported = export_onnx(reparameterize(model), contract.input_size)
    optimized, passes = run_passes(exported, default_passes(), samples)
    made = [_Made(output, optimized, contract.replace(quantization="none", calibration=""), model_file.FLOAT_TOLERANCE)]
    outcome = None
    if int8 is not None:
        for name in int8.formats:
            format_named(name)
        outcome = make_int8(optimized, contract, int8)
        if "qoperator" in int8.formats:
            made.append(_Made(int8_path(output), outcome.quantized.model, outcome.contract, model_file.INT8_TOLERANCE))
    contents: dict[Path, bytes] = {}
    files: list[ConvertedFile] = []
    for item in made:
        files.append(_finish(item, crops, expected, contents))
        if end_to_end:
            files.append(_wrap(item, files[-1], contents))
    if int8 is not None and outcome is not None:
        others = [name for name in dict.fromkeys(int8.formats) if name != "qoperator"]
        files += [_other_format(name, outcome, output, crops, expected, contents) for name in others]
    if not files[0].max_difference <= _LARGEST_DIFFERENCE:
        raise ConvertError(f"the converted network differs from the given one by {files[0].max_difference:.3g}")
    _make_folder(output.parent)
    model_file.write_files(contents)
    return ConversionReport(tuple(files), tuple(passes), outcome)


@dataclass(frozen=True, slots=True)
class _Made:
    path: Path
    model: onnx.ModelProto
    contract: Contract
    tolerance: float


def _finish(made: _Made, crops: Uint8Array, expected: Float32Array, contents: dict[Path, bytes]) -> ConvertedFile:
    """Measure a network and add its files' contents."""
    contract = made.contract.replace(fingerprint=model_file.take_fingerprint(made.model, made.contract, made.tolerance))
    files = model_file.model_files(made.model, contract, made.path)
    contents.update(files)
    stats = model_stats(made.model)
    difference = float(np.abs(model_file.run_model(made.model, prepare_input(crops, contract)) - expected).max())
    return ConvertedFile(made.path, len(files[made.path]), stats.macs, stats.parameters, stats.nodes, difference)


def _wrap(made: _Made, plain: ConvertedFile, contents: dict[Path, bytes]) -> ConvertedFile:
    """Make and check the end-to-end graph of a finished network and add its files' contents."""
    graph = end_to_end_model(made.model, made.contract)
    difference = largest_difference(graph, contents[plain.path])
    fingerprint = pixel_fingerprint(graph, made.contract, made.tolerance)
    contract = end_to_end_contract(made.contract).replace(fingerprint=fingerprint)
    path = end_to_end_path(made.path)
    files = model_file.model_files(graph, contract, path)
    contents.update(files)
    return replace(plain, path=path, size=len(files[path]), nodes=len(graph.graph.node), pixel_difference=difference)


def _other_format(
    name: str,
    outcome: Int8Outcome,
    output: Path,
    crops: Uint8Array,
    expected: Float32Array,
    contents: dict[Path, bytes],
) -> ConvertedFile:
    """Write a network in a format other than QOperator, check it in its own runtime, and add its files' contents."""
    kind, quantized = format_named(name), outcome.quantized
    path = output.with_suffix(kind.suffix)
    contract = outcome.contract.replace(
        quantization=outcome.contract.quantization.replace(format_named("qoperator").label, kind.label),
        fingerprint=model_file.take_fingerprint(quantized.model, outcome.contract, model_file.INT8_TOLERANCE),
    )
    content = kind.write(quantized, contract)
    contents.update(model_file.with_contract_file(content, contract, path))
    found = LandmarkModel.open(content).predict(crops).reshape(expected.shape)
    # Runtimes round differently by a step here and there, which moves single points of deep networks further.
    moved = float(np.abs(found - model_file.run_model(quantized.model, prepare_input(crops, outcome.contract))).mean())
    if not moved <= model_file.INT8_TOLERANCE:
        raise ConvertError(f"the {name} file differs from the QOperator file by {moved:.3g} of the crop on average")
    stats = model_stats(quantized.model)
    difference = float(np.abs(found - expected).max())
    return ConvertedFile(path, len(content), stats.macs, stats.parameters, stats.nodes, difference)


def _check_crops(crops: Uint8Array, contract: Contract) -> None:
    size = contract.input_size
    if len(crops) == 0 or crops.dtype != np.uint8 or crops.shape[1:] != (size, size, 3):
        raise ConvertError(
            f"samples must be uint8 of shape (N, {size}, {size}, 3), N at least 1; found {crops.dtype} {crops.shape}"
        )


def _torch_output(model: nn.Module, contract: Contract, samples: Float32Array) -> Float32Array:
    with torch.inference_mode():
        output = copy.deepcopy(model).eval()(torch.from_numpy(samples)).numpy()
    values = 2 * contract.landmarks.num_landmarks
    if output.shape != (len(samples), values):
        raise ConvertError(f"the contract promises {values} outputs a face, the network gives {output.shape[1:]}")
    return np.asarray(output, np.float32)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConvertError(f"the folder {folder} can't be made: {error.strerror or error}") from error
