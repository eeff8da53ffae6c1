"""Why a network's landmarks deviate from the reference's."""

from pfld_edge_convert.diagnosis.causes import diagnosed

__all__ = ["diagnosed"]
