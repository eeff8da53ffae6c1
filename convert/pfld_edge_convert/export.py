"""Exports a torch module to ONNX."""

import copy
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
import torch
from torch import nn

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.passes.canonical_form import BATCH, IR_VERSION, OPSET
from pfld_edge_convert.reparameterize import reparameterize
from pfld_edge_runtime.contract import LOG_VARIANCES
from pfld_edge_train.checkpoint import fill_network
from pfld_edge_train.models.edge import PFLDEdge

INPUT_NAME = "image"
OUTPUT_NAME = "landmarks"


def export_onnx(model: nn.Module, input_size: int, output_names: list[str] | None = None) -> onnx.ModelProto:
    """Export a network with a dynamic batch, opset 18, for every onnxruntime since 1.17.

    The network, reparameterized, maps ``image`` ``(N, 3, S, S)`` float32, S the input size, to ``landmarks``
    ``(N, 2 * P)``, and to their `LOG_VARIANCES` where it has heat maps; or to the outputs of these names, which torch
    chooses where the list is empty. The exporter's notes, which hold paths of this machine, are left out.

    Raises:
        ConvertError: torch can't export the module, or only for one batch size.
    """
    if output_names is None and isinstance(model, PFLDEdge):
        model, output_names = copy.copy(model), [OUTPUT_NAME, LOG_VARIANCES]
        model.forward = model.with_variances  # type: ignore[method-assign, assignment]
    # Two faces: torch takes a size of one for a constant.
    sample = torch.zeros(2, 3, input_size, input_size)
    try:
        with _silence():
            program = torch.onnx.export(
                model.eval(),
                (sample,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME] if output_names is None else output_names,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        cause = error.__cause__ or error  # what a network raised; the exporter's own text tells how to report it
        raise ConvertError(f"torch {torch.__version__} can't export {type(model).__name__}: {_line(cause)}") from error
    if program is None:
        raise ConvertError(f"torch {torch.__version__} exported nothing for {type(model).__name__}")
    exported = program.model_proto
    _strip_notes(exported)
    _name_layers(exported)
    exported.ir_version = IR_VERSION
    return exported


def export_checkpoint(path: Path, network: str, input_size: int) -> onnx.ModelProto:
    """Export a checkpoint of a network that a user's own code builds.

    Args:
        path: A state dict, or a dict that holds one.
        network: ``module:factory``; the factory is called without arguments, from the working folder or a package.
        input_size: Side of the image that the network takes, ``(N, 3, S, S)``.

    Raises:
        ConvertError: The factory can't be called or makes no network, or the network can't run or be exported.
        CheckpointError: The file can't be read or doesn't fit the network.
    """
    module_name, _, factory = network.partition(":")
    if not (module_name and factory):
        raise ConvertError(f"--network {network!r} is no module:factory, e.g. mynets:build")
    # As `python -m` would; a console script's path lacks the working folder.
    sys.path.insert(0, str(Path.cwd()))
    try:
        model = getattr(importlib.import_module(module_name), factory)()
    except Exception as error:
        raise ConvertError(f"--network {network} can't be built: {_line(error)}") from error
    finally:
        del sys.path[0]
    if not isinstance(model, nn.Module):
        raise ConvertError(f"--network {network} gives {type(model).__name__}, not a torch.nn.Module")
    fill_network(model, path)
    shape = 2, 3, input_size, input_size
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(shape))
    except Exception as error:
        raise ConvertError(f"--network {network} can't run on images {shape}: {_line(error)}") from error
    return export_onnx(reparameterize(model), input_size, [])


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the exporter's warnings, log lines and prints."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _strip_notes(model: onnx.ModelProto) -> None:
    graph = model.graph
    for item in [model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output]:
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    graph.ClearField("value_info")
    graph.ClearField("quantization_annotation")


def _name_layers(model: onnx.ModelProto) -> None:
    """Name each layer with weights as its module is named, so that reports speak of ``conv7`` and not ``node_12``."""
    for node in model.graph.node:
        name = node.input[1] if len(node.input) > 1 else ""
        node.name = name.removesuffix(".weight") if name.endswith(".weight") else node.name.removeprefix("node_")
