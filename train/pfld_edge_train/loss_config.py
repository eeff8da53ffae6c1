"""The ``[loss]`` table of a training configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from pfld_edge_train.errors import TrainConfigError

__all__ = ["CHOICES", "LossConfig"]

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "kind": ("wing", "adaptive-wing", "soft-wing", "smooth-l1", "l2", "l1"),
        "pose_weight": ("none", "paper", "deviation", "turned"),
        "attribute_weight": ("none", "paper", "balanced"),
    }
)
"""What the keys that take a name may say."""


@dataclass(frozen=True, slots=True)
class LossConfig:
    """The loss on landmarks, in pixels of the network's input. See `pfld_edge_train.losses` and ``docs/losses.md``.

    Attributes:
        kind: ``wing``, ``adaptive-wing``, ``soft-wing``, ``smooth-l1``, ``l2`` or ``l1``.
        wing_w: Width of wing loss's logarithmic part, in pixels.
        wing_epsilon: Its curvature, in pixels.
        adaptive_wing_omega: Height of adaptive wing loss.
        adaptive_wing_theta: Error at which it turns linear, in pixels.
        adaptive_wing_epsilon: Its curvature, in pixels.
        adaptive_wing_alpha: One more than its exponent; above 2, or the gradient at zero is infinite.
        soft_wing_omega1: Error up to which soft wing loss is L1, in pixels.
        soft_wing_omega2: Height of its logarithmic part.
        soft_wing_epsilon: Curvature of that part, in pixels.
        smooth_l1_beta: Error up to which smooth L1 is quadratic, in pixels.
        pose_weight: How the head's pose weighs a face: ``none``; ``paper``, PFLD's factor as printed; ``deviation``,
            one plus that factor; ``turned``, more for heads turned out of the image plane.
        eye_normalized: Let each face count by the inverse of its outer eye corners' distance, as NME does: a face in
            profile, whose eyes are close in the picture, then counts up to four times as much as a frontal one.
        attribute_weight: How WFLW's six attributes weigh a face: ``none``; ``paper``, the sum of its attributes'
            inverse frequencies; ``balanced``, one plus that sum, divided by its mean over the training faces.
        auxiliary_weight: Of the loss on the auxiliary network's angles; 0: that loss is left out.

    Raises:
        TrainConfigError: A value is out of range, or two contradict each other.
    """

    kind: str = "wing"
    wing_w: float = 10.0
    wing_epsilon: float = 2.0
    adaptive_wing_omega: float = 14.0
    adaptive_wing_theta: float = 10.0
    adaptive_wing_epsilon: float = 2.0
    adaptive_wing_alpha: float = 2.1
    soft_wing_omega1: float = 2.0
    soft_wing_omega2: float = 20.0
    soft_wing_epsilon: float = 2.0
    smooth_l1_beta: float = 1.0
    pose_weight: str = "none"
    eye_normalized: bool = False
    attribute_weight: str = "none"
    auxiliary_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise TrainConfigError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(choices)}")
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type is float and item.name != "auxiliary_weight" and not 0 < value < float("inf"):
                raise TrainConfigError(f"{item.name} must be positive, found {value}")
        if self.adaptive_wing_alpha <= 2:
            raise TrainConfigError(f"adaptive_wing_alpha must be above 2, found {self.adaptive_wing_alpha}")
        if not 0 <= self.auxiliary_weight < float("inf"):
            raise TrainConfigError(f"auxiliary_weight must be 0 or positive, found {self.auxiliary_weight}")
        if self.pose_weight == "deviation" and self.auxiliary_weight == 0:
            raise TrainConfigError(
                "pose_weight 'deviation' needs an auxiliary_weight above 0: nothing else trains the predicted angles"
            )

    @property
    def needs_auxiliary(self) -> bool:
        """Whether the auxiliary network, which predicts the head's angles, must train too."""
        return self.pose_weight in ("paper", "deviation") or self.auxiliary_weight > 0

    @property
    def needs_pose(self) -> bool:
        """Whether the true angles are asked for, which only the WFLW scheme has a face shape for."""
        return self.needs_auxiliary or self.pose_weight != "none"
