"""What can go wrong while a network is converted."""

from pfld_edge_runtime.errors import PfldEdgeError


class BenchmarkError(PfldEdgeError, ValueError):
    """A model can't be timed as asked."""


class ConvertError(PfldEdgeError, ValueError):
    """A network can't be converted, or a step of the conversion changed what it computes."""


class CalibrationError(PfldEdgeError, ValueError):
    """The calibration faces can't be used: none, or of a shape that the network doesn't take."""


class FellShortError(ConvertError):
    """A network was made, but it is less accurate, or slower, than was asked for."""


class ImportOnnxError(PfldEdgeError, ValueError):
    """An ONNX file is not a network of the PFLD family."""
