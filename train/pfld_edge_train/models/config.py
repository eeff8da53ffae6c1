"""What a network is, in a few values."""

from dataclasses import asdict, dataclass
from typing import Any

from pfld_edge_train.errors import ModelConfigError

__all__ = ["ModelConfig"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A network's kind and size.

    Attributes:
        kind: See `pfld_edge_train.models.MODEL_KINDS`.
        width_factor: Multiplies the channels.
        input_size: Side of the input in pixels, a multiple of 16.
        num_landmarks: Points a face.
        conv_branches: Convolution branches of each MobileOne block in training; 1 for kinds without such blocks.
        fused: The inference form: branches and BatchNorm are merged into one convolution with bias each.
        pointwise_scale: Whether GhostOne's 1x1 blocks have a scale branch too, for checkpoints that hold one.

    Raises:
        ModelConfigError: A value is out of range.
    """

    kind: str
    width_factor: float = 1.0
    input_size: int = 112
    num_landmarks: int = 98
    conv_branches: int = 1
    fused: bool = False
    pointwise_scale: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.input_size % 16 or not 32 <= self.input_size <= 1024:
            raise ModelConfigError(f"input size must be a multiple of 16 from 32 to 1024 pixels, not {self.input_size}")
        if not 0.1 <= self.width_factor <= 8:
            raise ModelConfigError(f"width factor must be from 0.1 to 8, not {self.width_factor}")
        if self.num_landmarks < 1 or self.conv_branches < 1:
            raise ModelConfigError("a network needs at least one landmark and one convolution branch")

    def scaled(self, channels: int) -> int:
        """Apply the width factor, rounding down."""
        # The sum keeps 80 * 0.7 = 55.99999 at 56.
        return max(1, int(channels * self.width_factor + 1e-6))

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as they are saved in checkpoints."""
        return asdict(self)
