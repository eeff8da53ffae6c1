"""Sets of any size: cut into work units, measured by many processes or machines, in constant memory."""

from pfld_edge_calib.sources.collected import CollectedFaces, collect
from pfld_edge_calib.sources.measured import MeasuredFaces, measure_unit
from pfld_edge_calib.sources.open_source import is_sharded, open_shards, open_source
from pfld_edge_calib.sources.results_folder import ResultsFolder
from pfld_edge_calib.sources.runner import Runner, run_locally, unit_results
from pfld_edge_calib.sources.unit import UNIT_FACES, FaceSource, SourcePhoto, Unit

__all__ = [
    "UNIT_FACES",
    "CollectedFaces",
    "FaceSource",
    "MeasuredFaces",
    "ResultsFolder",
    "Runner",
    "SourcePhoto",
    "Unit",
    "collect",
    "is_sharded",
    "measure_unit",
    "open_shards",
    "open_source",
    "run_locally",
    "unit_results",
]
