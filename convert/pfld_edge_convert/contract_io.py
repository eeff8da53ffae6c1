"""Writes models with their contracts, whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import onnx

from pfld_edge_convert.errors import ConvertError
from pfld_edge_runtime import CONTRACT_KEY, Contract

__all__ = ["attach_contract", "contract_path", "model_files", "read_contract", "write_files", "write_model"]


def attach_contract(model: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    """Copy a model with the contract in its metadata, in the place of any other."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [entry for entry in model.metadata_props if entry.key != CONTRACT_KEY]
    copy.ClearField("metadata_props")
    copy.metadata_props.extend(kept)
    copy.metadata_props.add(key=CONTRACT_KEY, value=contract.to_json())
    return copy


def read_contract(model: onnx.ModelProto) -> Contract | None:
    """Read the contract from a model's metadata; None where it carries none.

    Raises:
        ModelContractError: The contract is damaged or of a newer format.
    """
    for entry in model.metadata_props:
        if entry.key == CONTRACT_KEY:
            return Contract.from_json(entry.value)
    return None


def contract_path(model_path: Path) -> Path:
    """Name of the JSON file beside a model: ``face.int8.onnx`` has ``face.int8.json``.

    onnxruntime-web can't read an ONNX file's metadata; it reads this.
    """
    return model_path.with_suffix(".json")


def write_model(model: onnx.ModelProto, contract: Contract, path: Path) -> None:
    """Write a model that carries its contract, and the contract's JSON beside it.

    Raises:
        ConvertError: The folder is missing or can't be written to.
    """
    write_files(model_files(model, contract, path))


def model_files(model: onnx.ModelProto, contract: Contract, path: Path) -> dict[Path, bytes]:
    """Contents of a model's two files."""
    carrying = attach_contract(model, contract)
    # Deterministic: the same network gives the same bytes, so that a file's hash means something.
    onnx_bytes = carrying.SerializeToString(deterministic=True)
    return {path: onnx_bytes, contract_path(path): (contract.to_json(indent=2) + "\n").encode()}


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files under temporary names in their folders, then rename all of them.

    A run that is killed leaves each file as it was or whole.

    Raises:
        ConvertError: A folder is missing or can't be written to.
    """
    with ExitStack() as cleanup:
        try:
            pending = [(_write_temporary(path, content, cleanup), path) for path, content in contents.items()]
            for temporary, path in pending:
                temporary.replace(path)
        except OSError as error:
            names = ", ".join(str(path) for path in contents)
            raise ConvertError(f"can't write {names}: {error.strerror or error}") from error


def _write_temporary(path: Path, content: bytes, cleanup: ExitStack) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    temporary = Path(name)
    cleanup.callback(temporary.unlink, missing_ok=True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    # mkstemp makes files private to the user; a model is as public as the umask says.
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)
    return temporary
