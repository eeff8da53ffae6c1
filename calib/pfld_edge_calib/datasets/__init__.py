"""Datasets of faces: WFLW, CSV, COCO, tar and Parquet shards, opened by `open_faces`; and their preparation."""

from pfld_edge_calib.datasets.open_faces import FaceSet, is_sharded, open_faces
from pfld_edge_calib.face import Unit

__all__ = ["FaceSet", "Unit", "is_sharded", "open_faces"]
