"""Strengths that mean nothing are refused by name."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from pfld_edge_train.augment_config import AugmentConfig
from pfld_edge_train.errors import TrainConfigError


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [("jpeg", 1.5, "1"), ("noise", -1, "128"), ("shear", 1, "0.9"), ("gamma", float("nan"), "2")],
)
def test_a_senseless_strength_is_named(name: str, value: float, most: str) -> None:
    with pytest.raises(TrainConfigError, match=f"{name} must be from 0 to {most}, found {value}"):
        AugmentConfig(**{name: value})


def test_the_documentation_names_every_key_with_its_default() -> None:
    text = (Path(__file__).parents[3] / "docs/augmentation.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", text, re.MULTILINE))
    assert {name: float(value) for name, value in rows.items()} == asdict(AugmentConfig())
