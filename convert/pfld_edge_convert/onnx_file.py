"""Reads ONNX files of unknown origin."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from pfld_edge_runtime import ModelFileError

__all__ = ["load_onnx"]


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Weights that lie beside the file are read with it; a file that names ones anywhere else is refused, or it could make
    any file of the machine part of a model.

    Raises:
        ModelFileError: It is not one, is truncated, or names weights that are missing or outside of its folder.
    """
    try:
        model = onnx.load(path)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{path}: its weights are outside of it and can't be read: {reason}") from error
    except (DecodeError, ValueError) as error:
        raise ModelFileError(f"{path} is not an ONNX file, or is truncated") from error
    if not model.graph.node:
        raise ModelFileError(f"{path} is not an ONNX file: it holds no graph")
    return model
