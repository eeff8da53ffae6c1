"""The contract's JSON round trip, its validation, and the fingerprint's image."""

import json
from typing import Any

import numpy as np
import pytest

from pfld_edge_runtime import (
    ConfidenceCurve,
    Contract,
    CropRule,
    Fingerprint,
    ModelContractError,
    PfldEdgeError,
    fingerprint_image,
)


def full_contract() -> Contract:
    return Contract(
        model="pfld-ghostone",
        input_size=96,
        color_order="rgb",
        mean=(1.0, 2.5, 3.0),
        scale=(0.1, 255.0, 127.5),
        layout="NHWC",
        input_dtype="uint8",
        crop=CropRule(margin=1.35),
        quantization="int8",
        target="arm64",
        calibration="300 faces",
        trained_on="café 顔",
        nme=0.0521,
        nme_data="wflw-test",
        confidence_curve=ConfidenceCurve(0.05, 4.5),
        spread_curve=ConfidenceCurve(0.08, 3.5),
        fingerprint=Fingerprint(7, tuple(i / 196 for i in range(196)), 0.01),
    )


def spoilt(**changes: Any) -> dict[str, Any]:
    return Contract().to_dict() | changes


@pytest.mark.parametrize("contract", [Contract(), full_contract()], ids=["defaults", "every field set"])
def test_a_contract_survives_json(contract: Contract) -> None:
    assert Contract.from_json(contract.to_json()) == contract
    assert Contract.from_json(contract.to_json(indent=2)) == contract


def test_a_contract_without_optional_fields_gets_the_defaults() -> None:
    assert Contract.from_dict({"format_version": 1, "input_size": 64}) == Contract(input_size=64)


def test_a_newer_format_names_both_versions_and_the_upgrade() -> None:
    with pytest.raises(ModelContractError, match=r"version 2.*up to 1.*pip install -U") as caught:
        Contract.from_dict(spoilt(format_version=2, something_new=True))
    assert isinstance(caught.value, PfldEdgeError)
    assert isinstance(caught.value, ValueError)


def test_unknown_fields_are_named() -> None:
    with pytest.raises(ModelContractError, match="unknown fields: colour, zoom"):
        Contract.from_dict(spoilt(zoom=2, colour="rgb"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"contract"', "{}", '{"format_version": "1"}'])
def test_text_that_is_no_contract_is_refused(text: str) -> None:
    with pytest.raises(ModelContractError):
        Contract.from_json(text)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_contract_is_refused(share: float) -> None:
    text = Contract().to_json()
    with pytest.raises(ModelContractError, match="not valid JSON"):
        Contract.from_json(text[: int(len(text) * share)])


@pytest.mark.parametrize(
    "changes",
    [
        {"color_order": "grb"},
        {"layout": "CHW"},
        {"input_dtype": "float16"},
        {"output_space": "pixels"},
        {"input_size": 0},
        {"input_size": 112.5},
        {"input_size": None},
        {"mean": None},
        {"mean": [1, 2]},
        {"mean": ["a", "b", "c"]},
        {"mean": [float("nan"), 0, 0]},
        {"scale": [1, 1, 0]},
        {"scale": [float("inf"), 1, 1]},
        {"crop": None},
        {"crop": {"box": "detector"}},
        {"crop": {"margin": "wide"}},
        {"crop": {"margin": -1}},
        {"crop": {"margin": float("nan")}},
        {"crop": {"blur": 1}},
        {"landmarks": []},
        {"landmarks": {"name": "wflw-98"}},
        {"confidence_curve": {"middle": 0.05}},
        {"confidence_curve": {"middle": 0, "steepness": 4}},
        {"fingerprint": {"seed": 1}},
        {"fingerprint": {"seed": "x", "output": [], "tolerance": 1}},
    ],
    ids=lambda changes: json.dumps(changes),
)
def test_a_damaged_field_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelContractError):
        Contract.from_dict(spoilt(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"mirror": [0] * 98},
        {"mirror": list(range(97))},
        {"names": ["a", "b"]},
        {"normalizing_points": [60, 98]},
        {"normalizing_points": [60]},
    ],
    ids=["not a permutation", "too short", "names do not match", "no such point", "one point"],
)
def test_a_landmark_scheme_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelContractError):
        Contract.from_dict(spoilt(landmarks=Contract().to_dict()["landmarks"] | changes))


def test_the_wflw_mirror_swaps_what_the_data_set_says() -> None:
    mirror = Contract().landmarks.mirror
    assert all(mirror[mirror[i]] == i for i in range(98))
    # Wu et al. 2018, figure 2: jaw ends, chin, brow ends, outer eye corners, mouth corners, pupils.
    assert [mirror[i] for i in (0, 16, 33, 60, 76, 88, 96)] == [32, 16, 46, 72, 82, 92, 97]


def mosaic(seed: int, size: int) -> list[list[list[int]]]:
    """The image by Numerical Recipes' generator, in plain integers."""
    state, values = seed, []
    for _ in range(14 * 14 * 3):
        state = (1664525 * state + 1013904223) % 2**32
        values.append(state >> 24)
    tiles = [[values[3 * (14 * row + column) :][:3] for column in range(14)] for row in range(14)]
    return [[tiles[y * 14 // size][x * 14 // size] for x in range(size)] for y in range(size)]


@pytest.mark.parametrize("seed", [0, 1, 20260101, 2**32 - 1])
@pytest.mark.parametrize("size", [16, 112, 113])
def test_the_image_follows_the_plain_generator(seed: int, size: int) -> None:
    image = fingerprint_image(seed, size)
    assert image.dtype == np.uint8
    assert image.tolist() == mosaic(seed, size)
