"""The work of `evaluate` and `verify` on large sets: unit by unit, in processes of this machine or of others."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pfld_edge.console import face_progress, note
from pfld_edge.workers import runner
from pfld_edge_calib.proof import ProofModel
from pfld_edge_calib.sources import (
    CollectedFaces,
    FaceSource,
    MeasuredFaces,
    ResultsFolder,
    Unit,
    collect,
    is_sharded,
    measure_unit,
    unit_results,
)
from pfld_edge_calib.wflw import wflw_list
from pfld_edge_convert.proof_models import fused_form, open_proof_model

__all__ = ["LargeRun", "collected_faces"]

_LARGE_LIST = 4_000_000
"""Bytes of a list from which on its faces, some 2,000, are worth the seconds that further processes take to start."""


@dataclass(frozen=True, slots=True)
class LargeRun:
    """How a set is gone through.

    Attributes:
        workers: Processes; as many as there are cores where None.
        resume: Folder that keeps results; None where nothing is kept.
        ray: Address of a Ray cluster, empty for a new one; None for this machine's own processes.
    """

    workers: int | None = None
    resume: Path | None = None
    ray: str | None = None

    def needed(self, data: Path | None, split: str) -> bool:
        """Whether a set must be streamed: it is in shards, large, or an option asks for what only streaming does."""
        if data is None:
            return False
        if (self.workers or 1) > 1 or self.resume is not None or self.ray is not None or is_sharded(data):
            return True
        listed = wflw_list(data, split) if data.is_dir() else data
        return self.workers is None and listed.is_file() and listed.stat().st_size > _LARGE_LIST


@contextmanager
def collected_faces(
    models: Sequence[ProofModel], specs: Sequence[tuple[Path, bool]], source: FaceSource, run: LargeRun
) -> Iterator[CollectedFaces]:
    """Find the landmarks of a large set's faces; the result's files live as long as the context."""
    identity = {
        "format": "pfld-edge-results-1",
        "faces": source.identity,
        "models": " ".join(f"{model.sha256[:16]} {model.kind}" for model in models),
    }
    folder = None if run.resume is None else ResultsFolder(run.resume, identity)
    done = 0 if folder is None else sum(unit.count for i, unit in enumerate(source.units) if i in folder)
    if done:
        note(f"{done} of {source.count} are done already ({run.resume})")
    work = partial(_unit_work, tuple(specs))
    parts = unit_results(work, source.units, runner(run.workers, run.ray, len(source.units)), folder)
    points = models[0].contract.landmarks.num_landmarks
    with tempfile.TemporaryDirectory(prefix="pfld-edge-") as place:
        try:
            with face_progress("photographs", source.count) as advance:
                collected = collect(_decoded(parts, advance), len(models), points, Path(place))
        except KeyboardInterrupt:
            if folder is not None:
                note(f"what is done is kept in {folder.path}; the same command goes on")
            raise
        yield collected


def _decoded(parts: Iterator[tuple[Unit, bytes]], advance: Callable[[int], None]) -> Iterator[MeasuredFaces]:
    for unit, result in parts:
        yield MeasuredFaces.from_bytes(result)
        advance(unit.count)


def _unit_work(specs: Sequence[tuple[Path, bool]]) -> Callable[[Unit], bytes]:
    """Open the networks in a process, on one thread."""
    if any(path.suffix.lower() != ".onnx" for path, _ in specs):
        import torch

        torch.set_num_threads(1)
    models = [fused_form(path) if fused else open_proof_model(path) for path, fused in specs]
    return partial(_measure, models)


def _measure(models: Sequence[ProofModel], unit: Unit) -> bytes:
    return measure_unit(models, unit).to_bytes()
