"""Damaged, truncated, foreign and newer model files are refused with one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pfld_edge_runtime import (
    CONTRACT_KEY,
    Contract,
    FaceLandmarker,
    Fingerprint,
    ModelContractError,
    ModelFileError,
    PfldEdgeError,
)

Build = Callable[..., Path]
FIXTURE = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sentence(call: Callable[[], object], *kinds: type[PfldEdgeError]) -> str:
    """Give the message of one of these errors, or a filler where nothing was wrong; anything else fails the test."""
    try:
        call()
    except kinds as error:
        return str(error)
    return "all right"


@FIXTURE
@given(share=st.floats(0, 0.9999))
def test_a_truncated_file_is_refused(build: Build, contract: Contract, share: float) -> None:
    data = build(contract).read_bytes()
    with pytest.raises(PfldEdgeError) as caught:
        FaceLandmarker(data[: int(len(data) * share)])
    assert "\n" not in str(caught.value)


@FIXTURE
@given(data=st.data())
def test_damaged_bytes_give_a_network_or_one_sentence(build: Build, contract: Contract, data: st.DataObject) -> None:
    """Outside the weights: a changed weight is what the self-test is for."""
    raw = bytearray(build(contract).read_bytes())
    edges = [*range(200), *range(len(raw) - 3000, len(raw))]
    for place in data.draw(st.lists(st.sampled_from(edges), min_size=1, max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    said = sentence(lambda: FaceLandmarker(bytes(raw)), ModelFileError, ModelContractError)
    assert said
    assert "\n" not in said


def test_a_contract_that_is_no_text_is_refused(build: Build) -> None:
    data = build("contract!").read_bytes()
    with pytest.raises(ModelContractError, match="contract"):
        FaceLandmarker(data.replace(b"contract!", b"contract\xff"))


def test_names_that_are_no_text_are_refused(build: Build, contract: Contract) -> None:
    """onnxruntime opens such a file, and raises UnicodeDecodeError where its input's name is read."""
    model = onnx.load(build(contract))
    model.graph.output[0].name = model.graph.node[-1].output[0] = "landmark-points"
    with pytest.raises(ModelFileError, match=r"opens: .*utf-8"):
        FaceLandmarker(model.SerializeToString().replace(b"landmark-points", b"landmark-point\xff"))


def foreign(tmp_path: Path, *, inputs: int = 1, text: str | None = None) -> Path:
    """Write a valid network that has nothing to do with faces: the sum of its inputs."""
    names = [f"x{i}" for i in range(inputs)]
    graph = helper.make_graph(
        [helper.make_node("Sum", names, ["y"])],
        "foreign",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, "n"]) for name in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if text is not None:
        helper.set_model_props(model, {CONTRACT_KEY: text})
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    return path


def test_a_foreign_network_is_refused(tmp_path: Path, contract: Contract) -> None:
    with pytest.raises(ModelContractError, match="carries no contract"):
        FaceLandmarker(foreign(tmp_path))
    with pytest.raises(ModelContractError, match="contract promises"):
        FaceLandmarker(foreign(tmp_path), contract=contract)
    with pytest.raises(ModelContractError, match="one input and one output; found 2 and 1"):
        FaceLandmarker(foreign(tmp_path, inputs=2), contract=contract)
    with pytest.raises(ModelContractError, match="contract promises"):
        FaceLandmarker(foreign(tmp_path, text=contract.to_json()))


def test_the_contract_of_a_newer_version_says_to_upgrade(build: Build, contract: Contract) -> None:
    newer = json.dumps(contract.to_dict() | {"format_version": 2, "something_new": 1})
    with pytest.raises(ModelContractError, match=r"version 2.*up to 1.*upgrade with `pip install -U") as caught:
        FaceLandmarker(build(newer))
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such model file"):
        FaceLandmarker(tmp_path)


plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just([]), st.just({}), st.just([[1]])
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the places of a JSON document, long lists by their first three items."""
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value[:3]))
    else:
        return [at]
    return [at] * bool(at) + [place for key, item in inner for place in paths(item, (*at, key))]


FULL = Contract(fingerprint=Fingerprint(1, (0.5,) * 196, 0.01), nme=0.05).to_dict()


@settings(max_examples=400)
@given(st.sampled_from(paths(FULL)), plain)
def test_any_value_anywhere_in_a_contract_gives_a_contract_or_one_sentence(place: tuple[Any, ...], value: Any) -> None:
    record = json.loads(json.dumps(FULL))
    inner = record
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    said = sentence(lambda: Contract.from_json(json.dumps(record)), ModelContractError)
    assert said
    assert "\n" not in said
