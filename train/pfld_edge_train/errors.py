"""What can go wrong in training."""

from pfld_edge_runtime import PfldEdgeError

__all__ = ["TrainConfigError", "TrainingDivergedError"]


class TrainConfigError(PfldEdgeError, ValueError):
    """The training configuration is damaged, or asks for something impossible."""


class TrainingDivergedError(PfldEdgeError, ArithmeticError):
    """The loss is no longer a finite number."""
