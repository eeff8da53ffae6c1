"""What can go wrong with face sets."""

from pfld_edge_runtime import PfldEdgeError

__all__ = ["FaceSetError", "LabellingError"]


class FaceSetError(PfldEdgeError, ValueError):
    """A face set can't be read: a file or folder is missing, or a line is not what its format says."""


class LabellingError(PfldEdgeError, ValueError):
    """Faces can't be labelled: the teachers don't fit together, or nothing is left to label."""
