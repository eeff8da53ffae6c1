"""Model files: the ONNX graph, its contract and fingerprint; and ONNX models in memory, run by onnxruntime."""

import errno
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from pfld_edge_calib.files import replacing
from pfld_edge_convert.errors import ConvertError
from pfld_edge_runtime import (
    CONTRACT_KEY,
    IBUG_68,
    WFLW_98,
    Contract,
    Fingerprint,
    LandmarkScheme,
    ModelFileError,
    fingerprint_image,
    prepare_input,
)
from pfld_edge_runtime.arrays import Float32Array
from pfld_edge_runtime.session import reason_and_mend, session_options

if TYPE_CHECKING:
    from pfld_edge_train.checkpoint import Checkpoint


_ONLY_FATAL = 4
FINGERPRINT_SEED = 1
"""Of the image of every fingerprint."""

FLOAT_TOLERANCE = 1e-4
"""A hundredth of a pixel at 112: float kernels sum in different orders, and differ by some 1e-6."""

INT8_TOLERANCE = 1e-2
"""One pixel at 112: kernels round differently by a step here and there. Saturating arithmetic errs by far more."""


def open_model(model: onnx.ModelProto, *, optimize: bool = True, fuse_qdq: bool = True) -> onnxruntime.InferenceSession:
    """Open a model on the CPU, one thread, without onnxruntime's log lines; ConvertError where it is refused.

    Without `optimize` the nodes run as they stand, so that models which differ in nodes that move no numbers give the
    same bits; without `fuse_qdq` float operators between QuantizeLinear and DequantizeLinear stay float.
    """
    options = session_options(1)
    if not fuse_qdq:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _session(model.SerializeToString(), options)


def run_model(
    model: onnx.ModelProto, inputs: NDArray[np.generic], *, optimize: bool = True, fuse_qdq: bool = True
) -> Float32Array:
    """First output for one input ``(N, ...)``, run one by one where the batch is fixed; ConvertError where refused."""
    session = open_model(model, optimize=optimize, fuse_qdq=fuse_qdq)
    name = session.get_inputs()[0].name
    parts = np.split(inputs, len(inputs)) if session.get_inputs()[0].shape[0] == 1 else [inputs]
    try:
        outputs = [session.run(None, {name: part})[0] for part in parts]
    except Exception as error:
        raise ConvertError(f"the model can't run on inputs of shape {inputs.shape}: {str(error)[:300]}") from error
    return np.concatenate(outputs)


def optimized_graph(model: onnx.ModelProto | Path, *, layout: bool = True) -> onnx.ModelProto:
    """Open a model as a device would and read back the optimized graph; ConvertError where onnxruntime refuses it.

    With `layout` come the rewrites that depend on the processor (blocked and channels-last layouts), which rename
    tensors; without them tensors keep the file's names.
    """
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = session_options(1)
    if not layout:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory(prefix="pfld-edge-") as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        _session(source, options)
        return onnx.load(options.optimized_model_filepath)


def _session(source: str | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    options.log_severity_level = _ONLY_FATAL
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = reason_and_mend(error)
        raise ConvertError(f"onnxruntime {onnxruntime.__version__} refuses the model: {reason}") from error


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file of unknown origin.

    External data is read from the file's own folder; a file that names data anywhere else is refused, since it could
    make any file of the machine part of a model. ModelFileError for that, and for what is no ONNX file or truncated.
    """
    try:
        model = onnx.load(path)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{path}: its weights are outside of it and can't be read: {reason}") from error
    except (DecodeError, ValueError) as error:
        with path.open("rb") as file:
            kind = ": it is a checkpoint of torch, whose name ends in .pth" if file.read(2) == b"PK" else ""
        raise ModelFileError(f"{path} is not an ONNX file, or is truncated{kind}") from error
    if not model.graph.node:
        raise ModelFileError(f"{path} is not an ONNX file: it holds no graph")
    return model


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def attach_contract(model: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    """Copy a model with the contract in its metadata; it replaces an existing one."""
    copy = copied(model)
    set_metadata(copy, CONTRACT_KEY, contract.to_json())
    return copy


def read_contract(model: onnx.ModelProto) -> Contract | None:
    """Read the contract from a model's metadata, None without one; ModelContractError where it can't be read."""
    text = metadata(model, CONTRACT_KEY)
    return None if text is None else Contract.from_json(text)


def metadata(model: onnx.ModelProto, key: str) -> str | None:
    """A text of a model's metadata."""
    return next((entry.value for entry in model.metadata_props if entry.key == key), None)


def set_metadata(model: onnx.ModelProto, key: str, text: str) -> None:
    """Write a text into a model's metadata, behind all others; it replaces an existing one."""
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != key}
    onnx.helper.set_model_props(model, {**kept, key: text})


def checkpoint_contract(checkpoint: "Checkpoint", scheme: LandmarkScheme | None = None) -> Contract:
    """Read a checkpoint's contract; without one, the protocol of its public project for its network and input size.

    `scheme` names the points of a file without contract; 98 points are WFLW's and 68 those of 300-W where it is left
    out. ConvertError where it fits no number of points, ModelContractError where a contract is damaged.
    """
    if checkpoint.contract:
        return Contract.from_dict(checkpoint.contract)
    from pfld_edge_train.models.published import PROTOCOLS

    network = checkpoint.model
    known = {item.num_landmarks: item for item in (scheme or WFLW_98, scheme or IBUG_68)}
    if network.num_landmarks not in known:
        raise ConvertError(
            f"the checkpoint has {network.num_landmarks} landmarks and no contract that names them: convert it with "
            f"--landmarks {network.num_landmarks}"
        )
    protocol = PROTOCOLS.get(network.kind, {})
    return Contract(network.kind, network.input_size, landmarks=known[network.num_landmarks], **protocol)


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

    ConvertError where a folder is missing or can't be written to.
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
