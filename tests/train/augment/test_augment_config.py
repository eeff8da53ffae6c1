"""Strengths that mean nothing are refused by name."""

import pytest

from pfld_edge_train.augment_config import AugmentConfig
from pfld_edge_train.errors import TrainConfigError


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [("jpeg", 1.5, "1"), ("noise", -1, "128"), ("shear", 1, "0.9"), ("gamma", float("nan"), "2")],
)
def test_a_senseless_strength_is_named(name: str, value: float, most: str) -> None:
    with pytest.raises(TrainConfigError, match=f"augment, {name} must be from 0 to {most}, found {value}"):
        AugmentConfig(**{name: value})
