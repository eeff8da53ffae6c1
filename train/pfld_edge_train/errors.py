"""What can go wrong in training."""

from pfld_edge_runtime import PfldEdgeError


class TrainConfigError(PfldEdgeError, ValueError):
    """The training configuration is damaged, or asks for something impossible."""


class TrainingDivergedError(PfldEdgeError, ArithmeticError):
    """The loss is no longer a finite number."""


class TrainingInterruptedError(PfldEdgeError, InterruptedError):
    """A signal stopped the run; what it had done is saved.

    Attributes:
        signal: Its number; programs that a signal ends exit with 128 more.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class OtherProcessError(PfldEdgeError, RuntimeError):
    """Another process of the run failed, and has said why where it could."""


class ModelConfigError(PfldEdgeError, ValueError):
    """A network can't be built as described."""


class CheckpointError(PfldEdgeError, ValueError):
    """A checkpoint can't be read: missing, truncated, foreign, or of another network than expected."""
