"""A file that was tampered with is caught by `verify`, with the likely cause.

The bundled network, on the bundled portraits under a few boxes: four ways to break it, in the float file, the INT8
file and the end-to-end graph.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pfld_edge.cli import run
from pfld_edge_calib import jittered, portraits
from pfld_edge_calib.evaluation.drift import Verdict
from pfld_edge_calib.evaluation.verification import ModelResult, VerificationSettings, verify_models
from pfld_edge_convert.diagnosis import diagnosed, scale_names
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_convert.model_file import (
    INT8_TOLERANCE,
    attach_contract,
    read_contract,
    take_fingerprint,
)
from pfld_edge_runtime import WFLW_98, Contract, LandmarkModel
from pfld_edge_runtime.arrays import Int64Array

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "checkpoints/pfld-edge-s.pth"
INT8 = ROOT / "runtime/pfld_edge_runtime/models/pfld-edge-s.int8.onnx"
pytestmark = pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"{CHECKPOINT.name} is not there")

Model = onnx.ModelProto
Spoil = Callable[[Model], None]


@dataclass(frozen=True)
class Intact:
    """The checkpoint and files that were made from it."""

    folder: Path
    checkpoint: LandmarkModel

    def spoiled(self, name: str, spoil: Spoil) -> ModelResult:
        """Break a copy of a file, and verify it."""
        model = onnx.load(str(self.folder / name))
        spoil(model)
        path = self.folder / f"spoiled-{name}"
        onnx.save(model, str(path))
        models, faces = [self.checkpoint, open_landmark_model(path)], jittered(portraits(), 6, seed=1)
        return diagnosed(verify_models(models, faces, VerificationSettings(max_drift=0.005)), models).models[1]


@pytest.fixture(scope="module")
def intact(converted_s: Path, tmp_path_factory: pytest.TempPathFactory) -> Intact:
    folder = tmp_path_factory.mktemp("sabotage")
    for file in converted_s.parent.glob("s.*"):
        shutil.copy(file, folder)
    quantized = onnx.load(str(INT8))
    carried = read_contract(quantized)
    assert carried is not None
    # Taken again here: processors round INT8 in their own ways.
    seen = carried.replace(fingerprint=take_fingerprint(quantized, carried, INT8_TOLERANCE))
    onnx.save(attach_contract(quantized, seen), str(folder / "s.int8.onnx"))
    return Intact(folder, open_landmark_model(CHECKPOINT))


def tensors(model: Model) -> Iterator[tuple[onnx.TensorProto, NDArray[np.generic]]]:
    for tensor in model.graph.initializer:
        yield tensor, numpy_helper.to_array(tensor).copy()


def put(tensor: onnx.TensorProto, values: NDArray[np.generic]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def change_one_weight(model: Model) -> None:
    for tensor, values in tensors(model):
        if tensor.name == "blocks.3.reparam_conv.weight":
            values[5, 6, 1, 1] = 2.0
            put(tensor, values)


def exchange_input_channels(model: Model) -> None:
    for tensor, values in tensors(model):
        if values.shape == (16, 3, 3, 3):
            put(tensor, values[:, ::-1])


def contract_with(change: Callable[[Contract], Contract]) -> Spoil:
    def spoil(model: Model) -> None:
        contract = read_contract(model)
        assert contract is not None
        model.CopyFrom(attach_contract(model, change(contract)))

    return spoil


def reordered(order: Int64Array) -> Spoil:
    def spoil(model: Model) -> None:
        output = model.graph.output[0]
        of_points = len(output.type.tensor_type.shape.dim) == 3  # else x and y follow each other
        rows = order if of_points else np.stack([2 * order, 2 * order + 1], axis=1).ravel()
        made = next(i for i, node in enumerate(model.graph.node) if output.name in node.output)
        maker = model.graph.node[made]
        maker.output[list(maker.output).index(output.name)] = "in_order"
        model.graph.initializer.append(numpy_helper.from_array(rows.astype(np.int64), "order"))
        model.graph.node.insert(made + 1, helper.make_node("Gather", ["in_order", "order"], [output.name], axis=1))

    return spoil


def scaled(name: str, factor: float) -> Spoil:
    def spoil(model: Model) -> None:
        for tensor, values in tensors(model):
            if tensor.name == name:
                put(tensor, np.asarray(values * np.float32(factor), np.float32))

    return spoil


CHANGED = "its weights were changed after conversion"
SWAPPED = contract_with(lambda contract: contract.replace(color_order="rgb"))
MIRRORED = reordered(np.array(WFLW_98.mirror))
TWO_MOVED = reordered(np.array([72 if i == 60 else 60 if i == 72 else i for i in range(98)]))


@pytest.mark.parametrize(
    ("file", "spoil", "cause", "words"),
    [
        ("s.onnx", change_one_weight, "weights", CHANGED),
        ("s.onnx", exchange_input_channels, "color", "the file says BGR, but fed RGB it agrees"),
        ("s.onnx", SWAPPED, "color", "the file says RGB, but fed BGR it agrees"),
        ("s.int8.onnx", SWAPPED, "color", "the file says RGB, but fed BGR it agrees"),
        ("s.e2e.onnx", exchange_input_channels, "color", "RGB and BGR are exchanged"),
        ("s.onnx", MIRRORED, "order", "left and right are exchanged"),
        ("s.int8.onnx", MIRRORED, "order", "left and right are exchanged"),
        ("s.e2e.onnx", TWO_MOVED, "order", "its point 60 is 72 (right_eye_4), 72 is 60 (left_eye_0)"),
        ("s.onnx", reordered(np.roll(np.arange(98), 1)), "order", "point (i + 97) % 98"),
    ],
)
def test_sabotage_is_caught_with_its_cause(intact: Intact, file: str, spoil: Spoil, cause: str, words: str) -> None:
    proof = intact.spoiled(file, spoil)
    assert proof.verdict is Verdict.FAIL
    assert [found.cause for found in proof.likely_causes] == [cause]
    assert words in proof.likely_causes[0].sentence


@pytest.mark.parametrize("factor", [1.02, 0.98])
def test_any_int8_scale_that_is_off_by_two_percent_is_named(intact: Intact, factor: float) -> None:
    names = scale_names(onnx.load(str(intact.folder / "s.int8.onnx")))
    assert len(names) > 10
    for name in names[2 if factor > 1 else 3 :: 6]:
        proof = intact.spoiled("s.int8.onnx", scaled(name, factor))
        assert proof.verdict is Verdict.FAIL
        found = re.findall(r"'([^']+)' \([^)]*\) is off by (\S+%)", proof.likely_causes[0].sentence)
        assert (name, f"{factor - 1:+.1%}") in found


@pytest.mark.parametrize("file", ["s.onnx", "s.int8.onnx", "s.e2e.onnx"])
def test_intact_files_are_not_suspected(intact: Intact, file: str) -> None:
    assert intact.spoiled(file, lambda _model: None).likely_causes == ()


def test_a_file_whose_weights_were_all_changed_is_caught_by_its_fingerprint(intact: Intact) -> None:
    random = np.random.default_rng(0)

    def spoil(model: Model) -> None:
        for tensor, values in tensors(model):
            if values.dtype == np.float32 and values.size > 4:  # no factors of a Resize
                put(tensor, np.asarray(values * random.normal(1, 0.02, values.shape), np.float32))

    proof = intact.spoiled("s.onnx", spoil)
    assert proof.verdict is Verdict.FAIL
    assert CHANGED in proof.likely_causes[0].sentence


def test_verify_prints_the_cause_and_exits_with_1(intact: Intact, capsys: pytest.CaptureFixture[str]) -> None:
    intact.spoiled("s.onnx", MIRRORED)
    bad = str(intact.folder / "spoiled-s.onnx")
    assert run(["verify", str(CHECKPOINT), bad, "--no-fused", "--max-drift", "1%"]) == 1
    said = capsys.readouterr().out
    assert "likely cause: the landmarks are in another order: left and right are exchanged" in said
