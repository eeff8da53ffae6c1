"""Each loss against its paper's formula, written out for one error."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfld_edge_train.config import LossConfig
from pfld_edge_train.losses import point_loss

KINDS = ("wing", "adaptive-wing", "soft-wing", "smooth-l1", "l2", "l1")
ERRORS = st.floats(-60, 60)


def of_one_error(x: float, **settings: object) -> float:
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)
    return float(point_loss(LossConfig(**settings))(zero + x, zero))  # type: ignore[arg-type]


def paper_wing(x: float, w: float, epsilon: float) -> float:
    """Equation 5 of Feng et al. 2018."""
    x = abs(x)
    return w * math.log(1 + x / epsilon) if x < w else x - (w - w * math.log(1 + w / epsilon))


def paper_adaptive_wing(x: float, omega: float, theta: float, epsilon: float, alpha: float, y: float = 1) -> float:
    """Equation 3 of Wang et al. 2019, its A and C as printed, for a pixel of the true heatmap with value y."""
    x, ratio = abs(x), theta / epsilon
    if x < theta:
        return omega * math.log(1 + (x / epsilon) ** (alpha - y))
    a = omega * (1 / (1 + ratio ** (alpha - y))) * (alpha - y) * ratio ** (alpha - y - 1) * (1 / epsilon)
    c = theta * a - omega * math.log(1 + ratio ** (alpha - y))
    return a * x - c


def paper_soft_wing(x: float, omega1: float, omega2: float, epsilon: float) -> float:
    """Soft wing loss of Lin et al. 2021."""
    x = abs(x)
    b = omega1 - omega2 * math.log(1 + omega1 / epsilon)
    return x if x < omega1 else omega2 * math.log(1 + x / epsilon) + b


def paper_smooth_l1(x: float, beta: float) -> float:
    """Equation 3 of Girshick 2015, which has beta = 1."""
    return 0.5 * x**2 / beta if abs(x) < beta else abs(x) - 0.5 * beta


@given(ERRORS, st.floats(1, 20), st.floats(0.5, 4))
def test_wing_loss_is_equation_5(x: float, w: float, epsilon: float) -> None:
    found = of_one_error(x, kind="wing", wing_w=w, wing_epsilon=epsilon)
    assert found == pytest.approx(paper_wing(x, w, epsilon), rel=1e-9, abs=1e-9)


@given(ERRORS, st.floats(1, 20), st.floats(1, 20), st.floats(0.5, 4), st.floats(2.01, 3))
def test_adaptive_wing_loss_is_that_of_a_foreground_pixel(
    x: float, omega: float, theta: float, epsilon: float, alpha: float
) -> None:
    names = ("omega", "theta", "epsilon", "alpha")
    settings = {
        f"adaptive_wing_{name}": value for name, value in zip(names, (omega, theta, epsilon, alpha), strict=True)
    }
    found = of_one_error(x, kind="adaptive-wing", **settings)
    assert found == pytest.approx(paper_adaptive_wing(x, omega, theta, epsilon, alpha), rel=1e-9, abs=1e-9)


@given(ERRORS, st.floats(0.5, 5), st.floats(5, 30), st.floats(0.5, 4))
def test_soft_wing_loss_is_the_papers(x: float, omega1: float, omega2: float, epsilon: float) -> None:
    settings = {"soft_wing_omega1": omega1, "soft_wing_omega2": omega2, "soft_wing_epsilon": epsilon}
    found = of_one_error(x, kind="soft-wing", **settings)
    assert found == pytest.approx(paper_soft_wing(x, omega1, omega2, epsilon), rel=1e-9, abs=1e-9)


@given(ERRORS, st.floats(0.1, 10))
def test_smooth_l1_l1_and_l2_are_the_textbooks(x: float, beta: float) -> None:
    found = of_one_error(x, kind="smooth-l1", smooth_l1_beta=beta)
    assert found == pytest.approx(paper_smooth_l1(x, beta), rel=1e-9, abs=1e-12)
    assert of_one_error(x, kind="l1") == pytest.approx(abs(x))
    assert of_one_error(x, kind="l2") == pytest.approx(x * x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_gives_each_landmark_the_mean_of_its_coordinates(kind: str) -> None:
    loss, zero = point_loss(LossConfig(kind=kind)), torch.zeros(1, 1, 1)
    found = loss(torch.tensor([[[3.0, -25.0], [0.0, 0.5]]]), torch.zeros(1, 2, 2))
    expected = [[sum(float(loss(zero + x, zero)) for x in pair) / 2 for pair in ((3.0, 25.0), (0.0, 0.5))]]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_everywhere_and_zero_where_nothing_is_wrong(kind: str) -> None:
    errors = torch.tensor([0.0, 1e-30, 1e-6, 0.5, 2.0, 10.0, 1e4]).view(-1, 1, 1).requires_grad_()
    point_loss(LossConfig(kind=kind))(errors, torch.zeros(7, 1, 1)).sum().backward()
    assert errors.grad is not None
    assert errors.grad.isfinite().all()
    assert float(errors.grad[0]) == 0
    assert (errors.grad[1:] >= 0).all()


@pytest.mark.parametrize(
    ("kind", "joint", "smooth"),
    [("wing", 10.0, False), ("adaptive-wing", 10.0, True), ("soft-wing", 2.0, False), ("smooth-l1", 1.0, True)],
)
def test_the_parts_of_a_loss_meet(kind: str, joint: float, smooth: bool) -> None:
    sides = torch.tensor([joint * (1 - 1e-9), joint * (1 + 1e-9)], dtype=torch.float64).view(2, 1, 1).requires_grad_()
    loss = point_loss(LossConfig(kind=kind))(sides, torch.zeros(2, 1, 1, dtype=torch.float64))
    assert float(loss[0].detach()) == pytest.approx(float(loss[1].detach()), abs=1e-6)
    loss.sum().backward()
    assert sides.grad is not None
    below, above = sides.grad.flatten().tolist()
    assert (below == pytest.approx(above, abs=1e-6)) is smooth


def test_in_pixels_both_parts_of_wing_loss_are_used() -> None:
    error = torch.tensor([[[1.0, 50.0]]], requires_grad=True)
    point_loss(LossConfig(kind="wing"))(error, torch.zeros(1, 1, 2)).sum().backward()
    assert error.grad is not None
    # Slope w / (epsilon + x) of the logarithm, then 1; halved by the mean over two coordinates.
    assert error.grad[0, 0].tolist() == pytest.approx([10 / 3 / 2, 1 / 2])


def test_the_parameters_of_a_configuration_reach_the_loss() -> None:
    zero = torch.zeros(1, 1, 2, dtype=torch.float64)
    for config, expected in (
        (LossConfig(wing_w=5, wing_epsilon=0.5), paper_wing(3, 5, 0.5)),
        (
            LossConfig(
                kind="adaptive-wing",
                adaptive_wing_omega=7,
                adaptive_wing_theta=2,
                adaptive_wing_epsilon=1.5,
                adaptive_wing_alpha=2.5,
            ),
            paper_adaptive_wing(3, 7, 2, 1.5, 2.5),
        ),
        (
            LossConfig(kind="soft-wing", soft_wing_omega1=1, soft_wing_omega2=9, soft_wing_epsilon=0.5),
            paper_soft_wing(3, 1, 9, 0.5),
        ),
        (LossConfig(kind="smooth-l1", smooth_l1_beta=4), paper_smooth_l1(3, 4)),
    ):
        assert float(point_loss(config)(zero + 3, zero)) == pytest.approx(expected), config.kind
