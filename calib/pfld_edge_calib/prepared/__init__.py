"""Prepared faces: cut once, kept in shards that training reads, on any machine, without the photographs."""

from pfld_edge_calib.prepared.manifest import MANIFEST, Manifest, ShardEntry, open_prepared
from pfld_edge_calib.prepared.run import PrepareReport, prepare_faces, whole_set
from pfld_edge_calib.prepared.settings import ROOM, PrepareSettings
from pfld_edge_calib.prepared.shard_file import Shard, read_shard

__all__ = [
    "MANIFEST",
    "ROOM",
    "Manifest",
    "PrepareReport",
    "PrepareSettings",
    "Shard",
    "ShardEntry",
    "open_prepared",
    "prepare_faces",
    "read_shard",
    "whole_set",
]
