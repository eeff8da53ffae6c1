"""Which tensor of a float file is not the checkpoint's."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from pfld_edge_calib.proof import Suspicion
from pfld_edge_convert.diagnosis.finding import Finding
from pfld_edge_convert.layer_weights import layer_weights
from pfld_edge_convert.onnx_file import load_onnx

__all__ = ["changed_weights", "weights_differ"]

_SAME = 1e-6
"""Of a tensor's largest absolute value: conversion repeats to the bit, but for the order of sums in another torch."""

_FEW = 0.25
"""Share of the tensors up to which a file is a changed copy; beyond it is another network."""

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Change:
    """A tensor that differs: how many of its numbers, and the one that differs most."""

    name: str
    count: int
    size: int
    place: tuple[int, ...]
    expected: float
    found: float


def changed_weights(reference: Path, path: Path) -> Iterator[Finding]:
    """Convert the checkpoint again and compare, tensor by tensor, with the file.

    Args:
        reference: The checkpoint, or the ONNX file that the other should be equal to.
        path: A float ONNX file, plain or end-to-end.
    """
    pairs = _pairs(_reference_network(reference), load_onnx(path))
    if not pairs:
        sentence = f"the file is another network: its layers are not those of {reference.name}"
        yield Finding(Suspicion("weights", sentence), proven=False)
        return
    changes = [change for name, expected, found in pairs if (change := _change(name, expected, found)) is not None]
    if not changes:
        return
    if len(changes) > max(1, _FEW * len(pairs)):
        sentence = (
            f"{len(changes)} of {len(pairs)} tensors are not the checkpoint's: the file was made from other weights "
            f"than {reference.name} holds now"
        )
        yield Finding(Suspicion("weights", sentence, {"tensors": len(changes)}), proven=False)
        return
    first = changes[0]
    numbers = "one number differs" if first.count == 1 else f"{first.count} of {first.size} numbers differ"
    also = f"; {len(changes) - 1} more tensors differ" if len(changes) > 1 else ""
    sentence = (
        f"the tensor {first.name!r} was changed: {numbers} from the checkpoint's, at {list(first.place)} "
        f"{first.found:.6g} instead of {first.expected:.6g}{also}"
    )
    evidence: dict[str, float | str] = {"tensor": first.name, "numbers": first.count, "tensors": len(changes)}
    yield Finding(Suspicion("weights", sentence, evidence))


def weights_differ(reference: Path, path: Path) -> bool:
    """Compare tensors of the same name and shape in the checkpoint's fused form: fast, since nothing is exported.

    A difference is a reason to look closer, no proof: passes of the conversion may change a tensor and keep its name.
    """
    found = _floats(load_onnx(path))
    if reference.suffix.lower() == ".onnx":
        expected = _floats(load_onnx(reference))
    else:
        from pfld_edge_convert.fuse import reparameterize
        from pfld_edge_train.checkpoint import load_model

        fused = reparameterize(load_model(reference)[0]).state_dict()
        expected = {name: fused[name].numpy() for name in found if name in fused}
    return any(
        _change(name, values, found[name]) is not None
        for name, values in expected.items()
        if name in found and values.shape == found[name].shape
    )


def _reference_network(path: Path) -> onnx.ModelProto:
    if path.suffix.lower() == ".onnx":
        return load_onnx(path)
    # Here: torch takes seconds to import, and to export.
    from pfld_edge_convert.calibration_batches import proof_samples
    from pfld_edge_convert.checkpoint_contract import contract_of
    from pfld_edge_convert.export import export_onnx
    from pfld_edge_convert.fuse import reparameterize
    from pfld_edge_convert.pipeline import optimize
    from pfld_edge_train.checkpoint import load_model

    model, checkpoint = load_model(path)
    contract = contract_of(checkpoint)
    exported = export_onnx(reparameterize(model), contract.input_size)
    return optimize(exported, np.asarray(proof_samples(contract), np.float32))[0]


def _pairs(reference: onnx.ModelProto, file: onnx.ModelProto) -> list[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Tensors of both, by name where the file is our own; else layers in order, by shape. In the graph's order."""
    expected, found = _floats(reference), _floats(file)
    named = [name for name in expected if name in found and expected[name].shape == found[name].shape]
    if len(named) * 2 > len(expected):
        return [(name, expected[name], found[name]) for name in named]
    layers = layer_weights(reference), layer_weights(file)
    if [layer.weight.shape for layer in layers[0]] != [layer.weight.shape for layer in layers[1]]:
        return []
    return [(theirs.name, mine.weight, theirs.weight) for mine, theirs in zip(*layers, strict=True)]


def _floats(model: onnx.ModelProto) -> Tensors:
    """Float constants, in the order in which nodes read them."""
    values = {item.name: item for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT}
    read = dict.fromkeys(name for node in model.graph.node for name in node.input if name in values)
    return {name: numpy_helper.to_array(values[name]) for name in read}


def _change(name: str, expected: NDArray[Any], found: NDArray[Any]) -> _Change | None:
    apart = np.abs(found.astype(np.float64) - expected)
    apart = np.where(np.isfinite(apart), apart, np.inf)
    different = apart > _SAME * float(np.abs(expected).max(initial=0))
    if not different.any():
        return None
    place = tuple(int(index) for index in np.unravel_index(int(apart.argmax()), apart.shape))
    return _Change(name, int(different.sum()), apart.size, place, float(expected[place]), float(found[place]))
