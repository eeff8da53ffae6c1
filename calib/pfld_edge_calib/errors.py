"""Errors of datasets and of pseudo-labelling."""

from pfld_edge_runtime import PfldEdgeError


class FaceSetError(PfldEdgeError, ValueError):
    """A dataset can't be read: a file or folder is missing, or a line doesn't follow the format."""


class LabellingError(PfldEdgeError, ValueError):
    """Faces can't be labelled: the teachers have different landmark schemes, or no face is left to label."""
