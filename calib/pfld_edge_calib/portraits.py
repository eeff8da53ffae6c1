"""The two public-domain portraits that come with the toolkit."""

from pathlib import Path

from pfld_edge_calib.face import Face
from pfld_edge_calib.points_csv import read_points_csv

__all__ = ["PORTRAITS", "portraits"]

PORTRAITS = Path(__file__).parent / "portraits"
"""Folder of the portraits; its README says where they come from."""


def portraits() -> list[Face]:
    """Two faces with 98 landmarks each, labelled by published networks: enough to try a tool, not to measure it."""
    return read_points_csv(PORTRAITS / "landmarks.csv")
