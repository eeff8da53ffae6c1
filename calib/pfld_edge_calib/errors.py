"""What can go wrong with face sets."""

from pfld_edge_runtime import PfldEdgeError

__all__ = ["FaceSetError"]


class FaceSetError(PfldEdgeError, ValueError):
    """A face set can't be read: a file or folder is missing, or a line is not what its format says."""
