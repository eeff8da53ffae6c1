"""The configuration that weights alone reveal."""

import pytest
import torch

from pfld_edge_train.infer_config import infer_config, width_candidates
from pfld_edge_train.models import MODEL_KINDS, ModelConfig, build_model


# None is a multiple of 1/64 or 1/16: the first layer's channels alone don't tell the width.
@pytest.mark.parametrize("width", [0.35, 0.7, 0.8, 1.3])
@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_the_inferred_width_builds_the_same_shapes(kind: str, width: float) -> None:
    with torch.device("meta"):
        weights = build_model(ModelConfig(kind, width)).state_dict()
        rebuilt = build_model(infer_config(weights)).state_dict()
    assert {name: value.shape for name, value in rebuilt.items()} == {
        name: value.shape for name, value in weights.items()
    }


@pytest.mark.parametrize("width", [0.25, 0.7, 1.0])
def test_round_widths_come_back_as_they_were(width: float) -> None:
    with torch.device("meta"):
        weights = build_model(ModelConfig("pfld-ghostnet", width)).state_dict()
    assert infer_config(weights).width_factor == width


def test_every_candidate_width_gives_the_first_layer_its_channels() -> None:
    for channels in range(10, 130):
        for width in width_candidates("pfld-ghostnet", channels):
            assert ModelConfig("pfld-ghostnet", width).scaled(64) == channels
