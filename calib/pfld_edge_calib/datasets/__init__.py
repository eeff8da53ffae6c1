"""Datasets of faces: WFLW, CSV, COCO, tar and Parquet shards, opened by `open_faces`; and their preparation."""

from pfld_edge_calib.datasets.coco import read_coco
from pfld_edge_calib.datasets.open_faces import FaceSet, is_sharded, open_faces
from pfld_edge_calib.datasets.point_maps import as_wflw_98
from pfld_edge_calib.datasets.points_csv import read_points_csv
from pfld_edge_calib.datasets.units import Unit
from pfld_edge_calib.datasets.wflw import WFLW_ATTRIBUTES, read_wflw

__all__ = [
    "WFLW_ATTRIBUTES",
    "FaceSet",
    "Unit",
    "as_wflw_98",
    "is_sharded",
    "open_faces",
    "read_coco",
    "read_points_csv",
    "read_wflw",
]
