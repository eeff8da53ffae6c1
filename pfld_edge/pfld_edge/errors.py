"""What can go wrong in the command line itself."""

from pfld_edge_runtime import PfldEdgeError

__all__ = ["InputError", "OutputError"]


class InputError(PfldEdgeError, ValueError):
    """What should be read can't be."""


class OutputError(PfldEdgeError, ValueError):
    """The place that results should go to can't be used."""
