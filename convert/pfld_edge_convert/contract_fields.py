"""Changes the contract in a model's file: fields given as text are checked against the network and written to it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import onnx

from pfld_edge_convert import model_file
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.landmark_models import is_checkpoint
from pfld_edge_convert.passes.base import graph_inputs
from pfld_edge_runtime import Contract, LandmarkScheme, ModelContractError
from pfld_edge_runtime.contract import KNOWN_SCHEMES
from pfld_edge_runtime.errors import naming
from pfld_edge_runtime.landmark_model import check_signature
from pfld_edge_runtime.session import open_session

Told = str | LandmarkScheme
"""Value of a field as a user gives it."""

_NUMBERS = ("mean", "scale")
_KEPT = ("fingerprint", "confidence_curve", "spread_curve", "format_version", "crop", "output_space")
_TEXT = tuple(item.name for item in fields(Contract) if item.name not in (*_KEPT, *_NUMBERS))

FIELDS = (*_TEXT, *_NUMBERS, "margin")
"""What `changed_contract` changes. The fingerprint is computed anew whenever the contract is written."""

_ASSUMED = ("color_order", "mean", "scale", "margin", "landmarks")
"""What no graph tells, and nobody may guess: a file without contract gets one only where all of these are given."""


def carried_contract(path: Path) -> Contract | None:
    """Read the contract that an ONNX file or a checkpoint carries; None where it carries none."""
    if is_checkpoint(path):
        from pfld_edge_train.checkpoint import load_model

        record = load_model(path)[1].contract
        with naming(path):
            return Contract.from_dict(record) if record else None
    model = model_file.load_onnx(path)
    with naming(path):
        return model_file.read_contract(model)


def known_contract(path: Path, model: onnx.ModelProto, given: Path | None = None) -> Contract | None:
    """The contract of the JSON file that is given, else the one in an ONNX file, else that of the JSON file beside it.

    Raises:
        ModelContractError: The first or the second is damaged. A JSON file beside the model may be something else.
    """
    if given is not None:
        with naming(given):
            return Contract.from_json(given.read_text(encoding="utf-8", errors="replace"))
    with naming(path):
        carried = model_file.read_contract(model)
    beside = model_file.contract_path(path)
    if carried is None and beside.is_file():
        with suppress(ModelContractError):
            return Contract.from_json(beside.read_text(encoding="utf-8", errors="replace"))
    return carried


def contract_of_graph(
    model: onnx.ModelProto, name: str, values: Mapping[str, Told], options: Mapping[str, str] | None = None
) -> Contract:
    """Make the contract of an ONNX network that carries none; input size, layout and dtype come from its graph.

    Args:
        model: The network.
        name: Of its file, for messages.
        values: As for `changed_contract`; colour order, margin and landmarks must be among them, and mean and scale
            unless the network takes raw pixels.
        options: Names of the options by which these are given; `--set NAME=...` where left out.

    Raises:
        ConvertError: One of these is missing, or the input is no image of fixed size.
    """
    inputs = graph_inputs(model)
    if len(inputs) != 1:
        raise ConvertError(f"{name}: a landmark network has one input, this file has {len(inputs)}")
    tensor = inputs[0].type.tensor_type
    raw = tensor.elem_type == onnx.TensorProto.UINT8
    told = {**({"mean": "0", "scale": "1"} if raw else {}), **values}
    missing = [field for field in _ASSUMED if field not in told]
    if missing:
        given = ", ".join(options[field] if options else f"--set {field}=..." for field in missing)
        find = "`--find`" if options is None else f"`pfld-edge contract {name} --find`"
        look = f"; {find} looks for their values" if name.lower().endswith(".onnx") else ""
        raise ConvertError(f"{name} carries no contract: give {given} too{look}")
    shape = [dim.dim_value or dim.dim_param or "?" for dim in tensor.shape.dim]
    layout = "NHWC" if shape[-1:] == [3] else "NCHW"
    side = shape[2] if len(shape) == 4 else None
    size = str(told.get("input_size", side))
    if not size.isdecimal():
        option = "--set input_size=..." if options is None else options["input_size"]
        raise ConvertError(f"{name}: its input {shape} has no fixed size; give {option}")
    dtype = "uint8" if raw else "float32"
    return changed_contract(Contract(input_size=int(size), layout=layout, input_dtype=dtype), told)


def changed_contract(contract: Contract, values: Mapping[str, Told]) -> Contract:
    """Change fields of a contract, given as text by name of `FIELDS`.

    ``margin`` is a number, ``mean`` and ``scale`` are one number or three with commas, ``landmarks`` is ``wflw-98``,
    ``ibug-68`` or ``five-points``, or a scheme.

    Raises:
        ModelContractError: A field is unknown, or its value no runtime can obey.
    """
    record: dict[str, Any] = contract.to_dict()
    for name, text in values.items():
        if name not in FIELDS:
            raise ModelContractError(f"a contract has no field {name!r} to set; known: {', '.join(FIELDS)}")
        try:
            if isinstance(text, LandmarkScheme):
                record[name] = asdict(text)
            elif name == "margin":
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
        if text not in KNOWN_SCHEMES:
            raise ValueError(f"expected {', '.join(KNOWN_SCHEMES)}; other points come with --contract FILE.json")
        return asdict(KNOWN_SCHEMES[text])
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
    model = model_file.load_onnx(path)
    check_signature(open_session(path), contract)
    beside = model_file.contract_path(path)
    if beside.exists():
        try:
            Contract.from_json(beside.read_text(encoding="utf-8"))
        except (ModelContractError, UnicodeDecodeError) as error:
            raise ConvertError(f"{beside} is in the way, and is no contract: move it, or rename the model") from error
    tolerance = contract.fingerprint.tolerance if contract.fingerprint else model_file.FLOAT_TOLERANCE
    written = contract.replace(fingerprint=model_file.take_fingerprint(model, contract, tolerance))
    model_file.write_model(model, written, path)
    return written
