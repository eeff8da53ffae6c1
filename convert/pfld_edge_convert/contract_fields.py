"""Changes the contract in a model's file: fields given as text are checked against the network and written to it."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.model_file import (
    FLOAT_TOLERANCE,
    contract_path,
    load_onnx,
    read_contract,
    take_fingerprint,
    write_model,
)
from pfld_edge_runtime import FIVE_POINTS, IBUG_68, WFLW_98, Contract, ModelContractError
from pfld_edge_runtime.errors import naming
from pfld_edge_runtime.landmark_model import check_signature
from pfld_edge_runtime.session import open_session

_SCHEMES = {scheme.name: scheme for scheme in (WFLW_98, IBUG_68, FIVE_POINTS)}
_NUMBERS = ("mean", "scale")
_KEPT = ("fingerprint", "confidence_curve", "format_version", "crop", "output_space")
_TEXT = tuple(item.name for item in fields(Contract) if item.name not in (*_KEPT, *_NUMBERS))

FIELDS = (*_TEXT, *_NUMBERS, "margin")
"""What `changed_contract` changes. The fingerprint is computed anew whenever the contract is written."""

_ASSUMED = ("color_order", "mean", "scale", "margin", "landmarks")
"""What no graph tells, and nobody may guess: a file without contract gets one only where all of these are given."""


def carried_contract(path: Path) -> Contract | None:
    """Read the contract that an ONNX file or a checkpoint carries; None where it carries none."""
    if path.suffix.lower() in (".pth", ".pt"):
        from pfld_edge_train.checkpoint import load_model

        record = load_model(path)[1].contract
        with naming(path):
            return Contract.from_dict(record) if record else None
    model = load_onnx(path)
    with naming(path):
        return read_contract(model)


def new_contract(path: Path, values: Mapping[str, str]) -> Contract:
    """Make the contract of an ONNX file that carries none; input size, layout and dtype come from its graph.

    The values are as for `changed_contract`, and must hold the colour order, mean, scale, margin and landmarks.

    Raises:
        ConvertError: One of these is missing, or the input is no image of fixed size.
    """
    missing = [name for name in _ASSUMED if name not in values]
    if missing:
        raise ConvertError(
            f"{path.name} carries no contract: give {', '.join(f'--set {name}=...' for name in missing)} too; "
            "`--find` looks for their values"
        )
    inputs = open_session(path).get_inputs()
    if len(inputs) != 1:
        raise ConvertError(f"{path.name}: a landmark network has one input, this file has {len(inputs)}")
    model_input, shape = inputs[0], list(inputs[0].shape)
    layout = "NHWC" if shape[-1:] == [3] else "NCHW"
    side = shape[2] if len(shape) == 4 else None
    size = values.get("input_size", side)
    if not str(size).isdecimal():
        raise ConvertError(f"{path.name}: its input {shape} has no fixed size; give --set input_size=...")
    dtype = "uint8" if model_input.type == "tensor(uint8)" else "float32"
    return changed_contract(Contract(input_size=int(str(size)), layout=layout, input_dtype=dtype), values)


def changed_contract(contract: Contract, values: Mapping[str, str]) -> Contract:
    """Change fields of a contract, given as text by name of `FIELDS`.

    ``margin`` is a number, ``mean`` and ``scale`` are one number or three with commas, ``landmarks`` is ``wflw-98``,
    ``ibug-68`` or ``five-points``.

    Raises:
        ModelContractError: A field is unknown, or its value no runtime can obey.
    """
    record: dict[str, Any] = contract.to_dict()
    for name, text in values.items():
        if name not in FIELDS:
            raise ModelContractError(f"a contract has no field {name!r} to set; known: {', '.join(FIELDS)}")
        try:
            if name == "margin":
                record["crop"]["margin"] = float(text)
            else:
                record[name] = _value(name, text)
        except ValueError as error:
            raise ModelContractError(f"contract field {name} can't be {text!r}: {error}") from error
    return Contract.from_dict(record)


def _value(name: str, text: str) -> object:
    if name in _NUMBERS:
        numbers = [float(part) for part in text.split(",")]
        return numbers * 3 if len(numbers) == 1 else numbers
    if name == "landmarks":
        if text not in _SCHEMES:
            raise ValueError(f"expected {', '.join(_SCHEMES)}; other points come with --contract FILE.json")
        return Contract(landmarks=_SCHEMES[text]).to_dict()["landmarks"]
    if name == "input_size":
        return int(text)
    if name == "nme":
        return None if text in ("", "none") else float(text)
    return text


def write_contract(path: Path, contract: Contract) -> Contract:
    """Write a contract into an ONNX file and beside it as JSON, both or neither, with the new fingerprint returned.

    Raises:
        ConvertError: A file can't be written, or the JSON's place is taken by another file.
        ModelContractError: The network contradicts the contract.
    """
    model = load_onnx(path)
    check_signature(open_session(path), contract)
    beside = contract_path(path)
    if beside.exists():
        try:
            Contract.from_json(beside.read_text(encoding="utf-8"))
        except (ModelContractError, UnicodeDecodeError) as error:
            raise ConvertError(f"{beside} is in the way, and is no contract: move it, or rename the model") from error
    tolerance = contract.fingerprint.tolerance if contract.fingerprint else FLOAT_TOLERANCE
    written = contract.replace(fingerprint=take_fingerprint(model, contract, tolerance))
    write_model(model, written, path)
    return written
