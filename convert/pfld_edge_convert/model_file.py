"""Reads and writes model files: the ONNX graph, its contract, and the fingerprint that the contract records."""

import errno
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from pfld_edge_calib.files import replacing
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.inference import run_model
from pfld_edge_runtime import (
    CONTRACT_KEY,
    WFLW_98,
    Contract,
    Fingerprint,
    ModelFileError,
    fingerprint_image,
    prepare_input,
)

if TYPE_CHECKING:
    from pfld_edge_train.checkpoint import Checkpoint

FINGERPRINT_SEED = 1
"""Of the image of every fingerprint."""

FLOAT_TOLERANCE = 1e-4
"""A hundredth of a pixel at 112: float kernels sum in different orders, and differ by some 1e-6."""

INT8_TOLERANCE = 1e-2
"""One pixel at 112: kernels round differently by a step here and there. Saturating arithmetic errs by far more."""


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file of unknown origin.

    External data is read from the file's own folder; a file that names data anywhere else is refused, since it could
    make any file of the machine part of a model.

    Raises:
        ModelFileError: It is no ONNX file, is truncated, or names weights that are missing or outside of its folder.
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


def attach_contract(model: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    """Copy a model with the contract in its metadata; it replaces an existing one."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != CONTRACT_KEY}
    onnx.helper.set_model_props(copy, {**kept, CONTRACT_KEY: contract.to_json()})
    return copy


def read_contract(model: onnx.ModelProto) -> Contract | None:
    """Read the contract from a model's metadata; None where it carries none.

    Raises:
        ModelContractError: The contract is damaged or of a newer format.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == CONTRACT_KEY), None)
    return None if text is None else Contract.from_json(text)


def checkpoint_contract(checkpoint: "Checkpoint") -> Contract:
    """Read a checkpoint's contract; without one, the published PFLD protocol for its network and input size.

    Raises:
        ConvertError: It carries none, and its number of points is not WFLW's.
        ModelContractError: Its contract is damaged.
    """
    if checkpoint.contract:
        return Contract.from_dict(checkpoint.contract)
    network = checkpoint.model
    if network.num_landmarks != WFLW_98.num_landmarks:
        raise ConvertError(
            f"the checkpoint has {network.num_landmarks} landmarks and no contract that names them; only files with "
            f"{WFLW_98.num_landmarks} landmarks can be taken as published PFLD"
        )
    return Contract(model=network.kind, input_size=network.input_size)


def take_fingerprint(model: onnx.ModelProto, contract: Contract, tolerance: float) -> Fingerprint:
    """Record the output for the runtime's seeded image of a network as it will be shipped.

    The tolerance is the largest difference, in fractions of the crop, that a device may show.
    """
    image = fingerprint_image(FINGERPRINT_SEED, contract.input_size)
    output = run_model(model, prepare_input(image[None], contract))[0]
    return Fingerprint(FINGERPRINT_SEED, tuple(round(float(value), 6) for value in output), tolerance)


def contract_path(model_path: Path) -> Path:
    """Name of the JSON file beside a model: ``face.int8.onnx`` has ``face.int8.json``, others keep their suffix.

    onnxruntime-web can't read an ONNX file's metadata; it reads this.
    """
    kept = "" if model_path.suffix == ".onnx" else model_path.suffix
    return model_path.with_suffix(f"{kept}.json")


def write_model(model: onnx.ModelProto, contract: Contract, path: Path) -> None:
    """Write a model that carries its contract, and the contract's JSON beside it; see `write_files`."""
    write_files(model_files(model, contract, path))


def model_files(model: onnx.ModelProto, contract: Contract, path: Path) -> dict[Path, bytes]:
    """Contents of a model's two files."""
    return with_contract_file(onnx_bytes(model, contract), contract, path)


def with_contract_file(content: bytes, contract: Contract, path: Path) -> dict[Path, bytes]:
    """Contents of a model file, in whatever format, and of the contract's JSON beside it."""
    return {path: content, contract_path(path): (contract.to_json(indent=2) + "\n").encode()}


def onnx_bytes(model: onnx.ModelProto, contract: Contract) -> bytes:
    """Contents of an ONNX file that carries its contract; the same network gives the same bytes."""
    return bytes(attach_contract(model, contract).SerializeToString(deterministic=True))


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files under temporary names in their folders, then rename all: a killed run leaves each old or whole.

    Raises:
        ConvertError: A folder is missing or can't be written to.
    """
    try:
        with ExitStack() as pending:
            for path in contents:
                if not path.parent.is_dir():
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            files = [pending.enter_context(replacing(path)) for path in contents]
            for file, content in zip(files, contents.values(), strict=True):
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # of all, before the first is renamed
    except OSError as error:
        names = ", ".join(str(path) for path in contents)
        raise ConvertError(f"can't write {names}: {error.strerror or error}") from error
