"""Formats of quantized files: one plan of grids and integer weights, a writer for each family of runtimes.

To add a format, write a module with a function that takes a `Plan`, and name it in `FORMATS`. The plan holds all that
a writer may need: the float graph in canonical form, a grid for each tensor, integer weights and biases for each
layer, and, by their absence, which layers stay in float.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import onnx

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.formats.litert import write_litert
from pfld_edge_convert.formats.qdq import write_qdq
from pfld_edge_convert.model_file import onnx_bytes
from pfld_edge_runtime import Contract, MissingPackageError

if TYPE_CHECKING:
    from pfld_edge_convert.quantization.quantizer import Quantized

__all__ = ["FORMATS", "FileFormat", "format_named"]


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A format of quantized files; `write` gives the bytes of the file that carries a contract."""

    label: str  # the format and its activations, for the contract
    suffix: str  # of the file, in place of .onnx
    write: Callable[["Quantized", Contract], bytes]
    module: str = ""  # what must be installed to write it, besides what pfld-edge depends on


def _qdq(quantized: "Quantized", contract: Contract, *, signed: bool = False) -> bytes:
    model = write_qdq(quantized.plan, signed=signed)
    model.ClearField("metadata_props")
    model.metadata_props.extend(quantized.model.metadata_props)
    onnx.checker.check_model(model)
    return onnx_bytes(model, contract)


def _litert(quantized: "Quantized", contract: Contract, *, rounds_twice: bool = False) -> bytes:
    return write_litert(quantized.plan, contract.replace(layout="NHWC"), rounds_twice=rounds_twice)


FORMATS: Mapping[str, FileFormat] = {
    "qoperator": FileFormat(
        "QOperator, uint8 activations", ".int8.onnx", lambda quantized, contract: onnx_bytes(quantized.model, contract)
    ),
    "qdq": FileFormat("QDQ, uint8 activations", ".qdq.onnx", _qdq),
    "qdq-int8": FileFormat("QDQ, int8 activations", ".qdq-int8.onnx", partial(_qdq, signed=True)),
    "litert": FileFormat("LiteRT, int8 activations", ".tflite", _litert, "ai_edge_litert"),
    "litert-micro": FileFormat(
        "LiteRT for microcontrollers, int8 activations",
        ".micro.tflite",
        partial(_litert, rounds_twice=True),
        "ai_edge_litert",
    ),
}


def format_named(name: str) -> FileFormat:
    """Look a format up; ConvertError where there is none, MissingPackageError where what it needs isn't installed."""
    if name not in FORMATS:
        raise ConvertError(f"format {name!r} is unknown; known are {', '.join(FORMATS)}")
    found = FORMATS[name]
    if found.module and find_spec(found.module) is None:
        package = found.module.replace("_", "-")
        raise MissingPackageError(
            f"the format {name} needs {package}: install it with `pip install 'pfld-edge[litert]'`"
        )
    return found
