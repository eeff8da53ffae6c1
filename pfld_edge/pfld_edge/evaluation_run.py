"""The work of `evaluate` and `verify` on large sets: unit by unit, in processes of this machine or of a Ray cluster."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

import click

from pfld_edge.console import note, progress_bar
from pfld_edge.options import runner
from pfld_edge.output import write_json
from pfld_edge.report.faces import write_worst_faces
from pfld_edge_calib import Face, FaceSetError
from pfld_edge_calib.datasets import FaceSet, Unit, is_sharded, open_faces
from pfld_edge_calib.datasets.wflw import wflw_list
from pfld_edge_calib.evaluation import (
    FacePredictions,
    Robustness,
    Verification,
    VerificationSettings,
    evaluate_found,
    join_units,
    predict_unit,
    robustness_record,
    verification_record,
)
from pfld_edge_calib.find_landmarks import shared_scheme
from pfld_edge_calib.parallel import ResultsFolder, unit_results
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_runtime import LandmarkModel

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

    def needed(self, data: Sequence[Path], split: str) -> bool:
        """Whether sets must be streamed: in shards, large, or an option asks for what only streaming does."""
        if not data:
            return False
        if (self.workers or 1) > 1 or self.resume is not None or self.ray is not None or any(map(is_sharded, data)):
            return True
        lists = [wflw_list(path, split) if path.is_dir() else path for path in data]
        return self.workers is None and sum(path.stat().st_size for path in lists if path.is_file()) > _LARGE_LIST


@contextmanager
def verify_large(
    models: Sequence[LandmarkModel],
    data: Sequence[Path],
    images: Path | None,
    settings: VerificationSettings,
    run: LargeRun,
    *,
    compare: bool,
    skip: Callable[[FaceSetError], object],
) -> Iterator[Verification]:
    """Run networks over a set as `verify_models` does; the result's landmarks lie in files that live as long as this.

    Args:
        models: At least one; each process opens its own.
        data: The sets, as `open_faces` opens them.
        images: Folder of a CSV's images.
        settings: What is asked for, the split of a WFLW folder among it.
        run: How to go through the set.
        compare: Whether the first network is a reference.
        skip: Called for each photograph, shard, or member of a shard that can't be read or has no landmarks; what it
            raises ends the run.

    Raises:
        FaceSetError: A line of a list can't be used, no face can be measured, or `run` names another run's results.
        LabellingError: A process was killed.
        MissingPackageError: Ray or pyarrow is needed and not installed.
    """
    scheme = shared_scheme(models)
    with progress_bar("faces listed") as advance:
        source = open_faces(data, settings.split, images, advance=advance, skip=skip)
    with _scratch(run.resume) as place:
        try:
            found = join_units(_predictions(models, source, run, skip), len(models), scheme.num_landmarks, place)
        except KeyboardInterrupt:
            # Here, not in the generator: the signal may come while its results are being joined.
            if run.resume is not None:
                note(f"what is done is kept in {run.resume}; the same command goes on")
            raise
        yield evaluate_found(models, found, settings, compare=compare)


def write_results(
    found: Verification, json_target: str | None, worst: Path | None, robustness: Robustness | None = None
) -> None:
    """Write pictures of the worst faces, and all figures as JSON.

    Args:
        found: The verification.
        json_target: A file, or ``-``; nothing where None.
        worst: Folder for pictures; none where None.
        robustness: Goes into the JSON too.

    Raises:
        OSError: A file can't be written.
    """
    if worst is not None:
        written = write_worst_faces(found, worst)
        said = f"{len(written)} pictures -> {worst}" if written else "no face deviates: no pictures"
        click.echo(said, err=True)
    if json_target is not None:
        record = verification_record(found)
        if robustness is not None:
            record["robustness"] = robustness_record(robustness)
        write_json(json_target, json.dumps(record, indent=2))


class FacesOfRecord(Sequence[Face]):
    """The faces of a verification, made as they are asked for."""

    def __init__(self, record: Verification) -> None:
        self._record = record

    def __len__(self) -> int:
        """How many."""
        return len(self._record.faces)

    @overload
    def __getitem__(self, row: int) -> Face: ...

    @overload
    def __getitem__(self, row: slice) -> list[Face]: ...

    def __getitem__(self, row: int | slice) -> Face | list[Face]:
        """Make one, or some."""
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        return Face(Path(self._record.faces[row]), self._record.boxes[row], self._record.truth[row])


def _predictions(
    models: Sequence[LandmarkModel], source: FaceSet, run: LargeRun, skip: Callable[[FaceSetError], object]
) -> Iterator[FacePredictions]:
    """Give each unit's faces in order, and show how far it is."""
    folder = None if run.resume is None else ResultsFolder(run.resume, _identity(models, source))
    done = 0 if folder is None else sum(unit.count for i, unit in enumerate(source.units) if i in folder)
    if done:
        note(f"{done} of {source.count} are done already ({run.resume})")
    work = partial(_unit_work, tuple((Path(str(model.path)), model.kind == "fused torch") for model in models))
    parts = unit_results(work, source.units, runner(run.workers, run.ray, len(source.units)), folder, _is_whole)
    with closing(parts), progress_bar("faces", source.count) as advance:
        for unit, result in parts:
            predictions = FacePredictions.from_bytes(result)
            for complaint in predictions.unreadable:
                skip(FaceSetError(complaint))
            yield predictions
            advance(unit.count)


def _is_whole(result: bytes) -> bool:
    """Whether all photographs of a unit could be read; where not, they may be mended before the next run."""
    return not FacePredictions.from_bytes(result).unreadable


@contextmanager
def _scratch(results: Path | None) -> Iterator[Path]:
    """Give a folder for the joined landmarks: beside kept results, so that a killed run leaves none elsewhere."""
    if results is None:
        with tempfile.TemporaryDirectory(prefix="pfld-edge-", ignore_cleanup_errors=True) as place:
            yield Path(place)
        return
    joined = results / "joined"
    try:
        yield joined
    finally:
        shutil.rmtree(joined, ignore_errors=True)


def _identity(models: Sequence[LandmarkModel], source: FaceSet) -> dict[str, str]:
    return {
        "format": "pfld-edge-results-2",
        "faces": source.identity,
        "models": " ".join(f"{model.sha256[:16]} ({model.kind})" for model in models),
    }


def _unit_work(specs: Sequence[tuple[Path, bool]]) -> Callable[[Unit], bytes]:
    """Open the networks in a process, on one thread."""
    if any(path.suffix.lower() != ".onnx" for path, _ in specs):
        import torch

        torch.set_num_threads(1)
    models = [open_landmark_model(path, fused=fused) for path, fused in specs]
    return lambda unit: predict_unit(models, unit).to_bytes()
