"""The losses by name."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from pfld_edge_train.loss_config import LossConfig
from pfld_edge_train.losses.norms import l1_loss, l2_loss, smooth_l1_loss
from pfld_edge_train.losses.wing import adaptive_wing_loss, soft_wing_loss, wing_loss

__all__ = ["point_loss"]


def point_loss(config: LossConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Choose ``config.kind`` with its parameters: predicted and true ``(N, P, 2)`` pixels to ``(N, P)``."""
    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "wing": partial(wing_loss, w=config.wing_w, epsilon=config.wing_epsilon),
        "adaptive-wing": partial(
            adaptive_wing_loss,
            omega=config.adaptive_wing_omega,
            theta=config.adaptive_wing_theta,
            epsilon=config.adaptive_wing_epsilon,
            alpha=config.adaptive_wing_alpha,
        ),
        "soft-wing": partial(
            soft_wing_loss,
            omega1=config.soft_wing_omega1,
            omega2=config.soft_wing_omega2,
            epsilon=config.soft_wing_epsilon,
        ),
        "smooth-l1": partial(smooth_l1_loss, beta=config.smooth_l1_beta),
        "l2": l2_loss,
        "l1": l1_loss,
    }
    return kinds[config.kind]
