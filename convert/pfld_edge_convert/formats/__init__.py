"""Formats of quantized files: each writer turns a `Plan` into an ONNX model.

To add a format, write a module with a function that takes a `Plan`, and name it in `WRITERS`. The plan holds all that
a writer may need: the float graph in canonical form, a grid for each tensor, integer weights and biases for each
layer, and, by their absence, which layers stay in float.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.formats.qoperator import write_qoperator
from pfld_edge_convert.quantization.plan import Plan

__all__ = ["WRITERS", "FormatWriter", "writer_named"]


@dataclass(frozen=True, slots=True)
class FormatWriter:
    """A format of quantized files.

    Attributes:
        label: The format's name in contracts.
        write: Writes the network of a plan, without contract.
    """

    label: str
    write: Callable[[Plan], onnx.ModelProto]


WRITERS: Mapping[str, FormatWriter] = {"qoperator": FormatWriter("QOperator", write_qoperator)}


def writer_named(name: str) -> FormatWriter:
    """Look a format up.

    Raises:
        ConvertError: There is none of that name.
    """
    if name not in WRITERS:
        raise ConvertError(f"format {name!r} is unknown; known are {', '.join(WRITERS)}")
    return WRITERS[name]
