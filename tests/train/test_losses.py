"""Wing loss against the paper."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfld_edge_train.losses import wing_loss


def paper(x: float, w: float, epsilon: float) -> float:
    """Equation 5 of Feng et al. 2018, written out."""
    x = abs(x)
    return w * math.log(1 + x / epsilon) if x < w else x - (w - w * math.log(1 + w / epsilon))


@given(st.floats(-60, 60), st.floats(1, 20), st.floats(0.5, 4))
def test_wing_loss_is_equation_5(x: float, w: float, epsilon: float) -> None:
    found = wing_loss(torch.tensor([[[x]]], dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64), w, epsilon)
    assert float(found) == pytest.approx(paper(x, w, epsilon), rel=1e-9, abs=1e-9)


def test_in_pixels_both_parts_of_wing_loss_are_used() -> None:
    error = torch.tensor([[[1.0, 50.0]]], requires_grad=True)
    wing_loss(error, torch.zeros(1, 1, 2)).sum().backward()
    assert error.grad is not None
    # Slope w / (epsilon + x) of the logarithm, then 1; halved by the mean over two coordinates.
    assert error.grad[0, 0].tolist() == pytest.approx([10 / 3 / 2, 1 / 2])
