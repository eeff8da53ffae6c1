"""The whole way from a trained network to files for devices."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from pfld_edge_convert.contract_io import model_files, write_files
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.export import export_onnx
from pfld_edge_convert.fingerprint import FLOAT_TOLERANCE, INT8_TOLERANCE, take_fingerprint
from pfld_edge_convert.fuse import reparameterize
from pfld_edge_convert.inference import run_model
from pfld_edge_convert.model_stats import model_stats
from pfld_edge_convert.passes import PassReport, default_passes, run_passes
from pfld_edge_convert.quantize import QuantizationSettings, quantize
from pfld_edge_convert.simplify import simplify
from pfld_edge_runtime import Contract

__all__ = ["Calibration", "ConversionReport", "ConvertedFile", "convert", "int8_path", "optimize"]

_LARGEST_DIFFERENCE = 1e-4
"""Of the float file to torch, in fractions of the crop: a hundredth of a pixel at 112."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the quantizer looks at.

    Attributes:
        batches: ``(n, 3, S, S)`` float32, read once.
        source: What they are, for the contract, e.g. ``256 faces of WFLW, seed 0``.
        settings: How to quantize.
    """

    batches: Iterable[NDArray[np.float32]]
    source: str
    settings: QuantizationSettings = field(default_factory=QuantizationSettings)


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """A file that was written, and what it costs.

    Attributes:
        path: The ONNX file.
        size: Bytes.
        macs: Multiply-accumulates a face.
        parameters: Weights and biases.
        nodes: Nodes of the graph.
        max_difference: Largest absolute difference to the torch network on the samples, fractions of the crop.
    """

    path: Path
    size: int
    macs: int
    parameters: int
    nodes: int
    max_difference: float


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion made.

    Attributes:
        files: The float file, then the INT8 file where one was asked for.
        passes: What each graph pass did.
    """

    files: tuple[ConvertedFile, ...]
    passes: tuple[PassReport, ...]


def int8_path(output: Path) -> Path:
    """Name of the INT8 file beside a float file: ``face.onnx`` has ``face.int8.onnx``."""
    return output.with_suffix(f".int8{output.suffix}")


def optimize(model: onnx.ModelProto, samples: NDArray[np.float32]) -> tuple[onnx.ModelProto, tuple[PassReport, ...]]:
    """Simplify a float network and run every pass, each proven on the samples.

    Args:
        model: Any float network with one input; left as it is.
        samples: ``(N, 3, S, S)`` float32.

    Raises:
        ConvertError: A step changed what the network computes.
    """
    optimized, reports = run_passes(simplify(model, samples), default_passes(), samples)
    return optimized, tuple(reports)


def convert(
    model: nn.Module,
    contract: Contract,
    output: Path,
    samples: NDArray[np.float32],
    calibration: Calibration | None = None,
) -> ConversionReport:
    """Convert a network: reparameterize, export, simplify, optimize, quantize, write.

    Nothing is written before everything is made and proven, and then whole files at once, so that a run that fails or
    is killed leaves what was there before.

    Args:
        model: A trained network with or without training branches; left as it is.
        contract: How the network was trained; the files carry it with a fingerprint of their own.
        output: The float file; see `int8_path` for the other. Its folder is made if need be.
        samples: ``(N, 3, S, S)`` float32 faces, on which every step is proven and differences are measured.
        calibration: Faces for INT8; no INT8 file without.

    Raises:
        ConvertError: A step failed or changed what the network computes, or a file can't be written.
        CalibrationError: The calibration faces can't be used.
    """
    expected = _torch_output(model, contract, samples)
    optimized, passes = optimize(export_onnx(reparameterize(model), contract.input_size), samples)
    plain = contract.replace(quantization="none", calibration="")
    made = [_Made(output, optimized, plain, FLOAT_TOLERANCE)]
    if calibration is not None:
        quantized = quantize(optimized, calibration.batches, calibration.settings)
        # What was measured on the float network is not true of this one.
        promised = contract.replace(
            quantization=calibration.settings.describe(), calibration=calibration.source, nme=None, nme_data=""
        )
        made.append(_Made(int8_path(output), quantized, promised, INT8_TOLERANCE))
    contents: dict[Path, bytes] = {}
    files = [_finish(item, samples, expected, contents) for item in made]
    if not files[0].max_difference <= _LARGEST_DIFFERENCE:
        raise ConvertError(f"the converted network differs from torch by {files[0].max_difference:.3g}")
    _make_folder(output.parent)
    write_files(contents)
    return ConversionReport(tuple(files), passes)


@dataclass(frozen=True, slots=True)
class _Made:
    path: Path
    model: onnx.ModelProto
    contract: Contract
    tolerance: float


def _finish(
    made: _Made, samples: NDArray[np.float32], expected: NDArray[np.float32], contents: dict[Path, bytes]
) -> ConvertedFile:
    """Measure a network and add its files' contents."""
    contract = made.contract.replace(fingerprint=take_fingerprint(made.model, made.contract, made.tolerance))
    files = model_files(made.model, contract, made.path)
    contents.update(files)
    stats = model_stats(made.model)
    difference = float(np.abs(run_model(made.model, samples) - expected).max())
    return ConvertedFile(made.path, len(files[made.path]), stats.macs, stats.parameters, stats.nodes, difference)


def _torch_output(model: nn.Module, contract: Contract, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    size = contract.input_size
    if len(samples) == 0 or samples.shape[1:] != (3, size, size):
        raise ConvertError(f"samples must have shape (N, 3, {size}, {size}), N at least 1; found {samples.shape}")
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
