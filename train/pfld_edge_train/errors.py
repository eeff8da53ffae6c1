"""What can go wrong in training."""

from pfld_edge_runtime import PfldEdgeError

__all__ = ["CheckpointError", "ModelConfigError", "TrainConfigError", "TrainingDivergedError"]


class TrainConfigError(PfldEdgeError, ValueError):
    """The training configuration is damaged, or asks for something impossible."""


class TrainingDivergedError(PfldEdgeError, ArithmeticError):
    """The loss is no longer a finite number."""


class ModelConfigError(PfldEdgeError, ValueError):
    """A network can't be built as described."""


class CheckpointError(PfldEdgeError, ValueError):
    """A checkpoint can't be read: missing, truncated, foreign, or of another network than expected."""
