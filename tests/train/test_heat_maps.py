"""A landmark lies where its heat map's probability does."""

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass
from scipy.special import softmax

from pfld_edge_train.models.heat_maps import STRETCH, HeatMaps


@pytest.mark.parametrize("side", [4, 14])
def test_a_landmark_is_the_centre_of_mass_of_its_heat_map(side: int) -> None:
    torch.manual_seed(side)
    layer = HeatMaps(3, side, 5)
    maps = torch.randn(2, 3, side, side) * 5
    with torch.no_grad():
        heat = layer.heat(maps).double().numpy().reshape(10, -1)
        found = layer(maps).numpy().reshape(10, 2)
    centres = [center_of_mass(row.reshape(side, side)) for row in softmax(heat, axis=1)]
    fractions = (np.array(centres)[:, ::-1] + 0.5) / side
    np.testing.assert_allclose(found, (fractions - 0.5) * STRETCH + 0.5, atol=1e-5)


def test_in_mixed_precision_the_softmax_stays_in_float32() -> None:
    torch.manual_seed(0)
    layer, maps = HeatMaps(8, 14, 5), torch.randn(2, 8, 14, 14).bfloat16()
    with torch.no_grad():
        torch.nn.init.normal_(layer.heat.weight, std=5.0)
        expected = layer(maps.float())
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(maps)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
