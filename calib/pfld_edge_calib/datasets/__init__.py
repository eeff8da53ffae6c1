"""Datasets of faces: WFLW, CSV, COCO, tar and Parquet shards, opened by `open_faces`; and their preparation."""
