"""What most likely went wrong with a file whose landmarks are not its checkpoint's."""

from pfld_edge_convert.diagnosis.diagnose import diagnosed

__all__ = ["diagnosed"]
