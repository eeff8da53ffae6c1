"""What can go wrong in the command line itself."""

from pfld_edge_runtime import PfldEdgeError

__all__ = ["OutputError"]


class OutputError(PfldEdgeError, ValueError):
    """The place that results should go to can't be used."""
