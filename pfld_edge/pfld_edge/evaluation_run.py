"""The work that `evaluate` and `verify` share: networks over a set, in this process or, unit by unit, in several."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import click

from pfld_edge.console import SkippedFiles, note, note_repeated, progress_bar, write_json
from pfld_edge.options import runner
from pfld_edge.report.faces import write_worst_faces
from pfld_edge_calib import Face, FaceSetError
from pfld_edge_calib.datasets.open_faces import FaceSet, is_sharded, open_faces
from pfld_edge_calib.datasets.wflw import wflw_list
from pfld_edge_calib.evaluation import verification
from pfld_edge_calib.evaluation.predictions import FacePredictions, join_units, predict_unit
from pfld_edge_calib.evaluation.robustness import Robustness, robustness_record
from pfld_edge_calib.face import Unit
from pfld_edge_calib.find_landmarks import shared_scheme
from pfld_edge_calib.parallel import ResultsFolder, unit_results
from pfld_edge_calib.photo import UnusableFaces
from pfld_edge_convert.landmark_models import RuntimeResult, is_checkpoint, open_landmark_model
from pfld_edge_runtime import LandmarkModel

_LARGE_LIST = 4_000_000
"""Bytes of a list from which on its faces, some 2,000, are worth the seconds that further processes take to start."""


@dataclass(frozen=True)
class MeasuredSet:
    """The faces that are measured on, and how they are gone through: the options of `set_options`."""

    data: Sequence[Path]
    images: Path | None
    split: str
    workers: int | None
    resume: Path | None
    ray: str | None
    strict: bool

    @cached_property
    def skip(self) -> SkippedFiles:
        """What is told of photographs that can't be read."""
        return SkippedFiles(strict=self.strict)

    @cached_property
    def unusable(self) -> UnusableFaces:
        """Faces that can't be measured, of sets that aren't streamed."""
        return UnusableFaces(self.skip)

    @property
    def name(self) -> str:
        """All sets, for the record."""
        return ", ".join(map(str, self.data))

    @cached_property
    def streamed(self) -> bool:
        """Whether sets must be streamed: in shards, large, or an option asks for what only streaming does."""
        if not self.data:
            return False
        asked = (self.workers or 1) > 1 or self.resume is not None or self.ray is not None
        if asked or any(map(is_sharded, self.data)):
            return True
        lists = [wflw_list(path, self.split) if path.is_dir() else path for path in self.data]
        return self.workers is None and sum(path.stat().st_size for path in lists if path.is_file()) > _LARGE_LIST

    def faces(self) -> list[Face]:
        """Read the faces; none of a set that is streamed."""
        if self.streamed:
            return []
        faces = open_faces(self.data, self.split, self.images, skip=self.skip).load(self.skip)
        note_repeated(faces)
        return faces

    def verify(
        self,
        models: Sequence[LandmarkModel],
        faces: Sequence[Face],
        settings: verification.VerificationSettings,
        *,
        compare: bool = True,
        refine: int = 0,
    ) -> verification.Verification:
        """Run networks over faces, or over the whole set where it is streamed, as `verify_models` does.

        The landmarks of a streamed set lie in files that live as long as the command.

        Raises:
            FaceSetError: A label can't be used, no face can be measured, or `resume` holds another run's results.
            LabellingError: A process was killed.
            MissingPackageError: Ray or pyarrow is needed and not installed.
        """
        if self.streamed:
            return click.get_current_context().with_resource(self._verify_streamed(models, settings, compare))
        with progress_bar("faces", len(faces)) as advance:
            return verification.verify_models(
                models, faces, settings, compare=compare, refine=refine, advance=advance, unusable=self.unusable
            )

    @contextmanager
    def _verify_streamed(
        self, models: Sequence[LandmarkModel], settings: verification.VerificationSettings, compare: bool
    ) -> Iterator[verification.Verification]:
        scheme = shared_scheme(models)
        with progress_bar("faces listed") as advance:
            source = open_faces(self.data, self.split, self.images, advance=advance, skip=self.skip)
        with _scratch(self.resume) as place:
            try:
                found = join_units(self._predictions(models, source), len(models), scheme.num_landmarks, place)
            except KeyboardInterrupt:
                # Here, not in the generator: the signal may come while its results are being joined.
                if self.resume is not None:
                    note(f"what is done is kept in {self.resume}; the same command goes on")
                raise
            yield verification.evaluate_found(models, found, settings, compare=compare)

    def _predictions(self, models: Sequence[LandmarkModel], source: FaceSet) -> Iterator[FacePredictions]:
        """Give each unit's faces in order, and show how far it is."""
        folder = None if self.resume is None else ResultsFolder(self.resume, _identity(models, source))
        done = 0 if folder is None else folder.done(source.units)
        if done:
            note(f"{done} of {source.count} are done already ({self.resume})")
        work = partial(
            _unit_work, tuple((Path(str(model.path)), model.kind == "fused torch", model.device) for model in models)
        )
        run = runner(self.workers, self.ray, len(source.units))
        parts = unit_results(work, source.units, run, folder, _is_whole)
        with closing(parts), progress_bar("faces", source.count) as advance:
            for unit, result in parts:
                predictions = FacePredictions.from_bytes(result)
                for complaint in predictions.unreadable:
                    self.skip(FaceSetError(complaint))
                yield predictions
                advance(unit.count)


def write_results(
    found: verification.Verification,
    json_target: str | None,
    worst: Path | None,
    robustness: Robustness | None = None,
    runtimes: Sequence[RuntimeResult] = (),
) -> None:
    """Write pictures of the worst faces into a folder, and all figures as JSON, where these are asked for."""
    if worst is not None:
        written = write_worst_faces(found, worst)
        said = f"{len(written)} pictures -> {worst}" if written else "no face deviates: no pictures"
        click.echo(said, err=True)
    if json_target is not None:
        record = verification.verification_record(found)
        if robustness is not None:
            record["robustness"] = robustness_record(robustness)
        if runtimes:
            record["runtimes"] = [asdict(result) for result in runtimes]
        write_json(json_target, record)


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
        "models": " ".join(f"{model.sha256[:16]} ({model.kind}{_elsewhere(model)})" for model in models),
    }


def _elsewhere(model: LandmarkModel) -> str:
    return f", {model.runtime}" if model.runtime not in ("", "onnxruntime") else ""


def _unit_work(specs: Sequence[tuple[Path, bool, str]]) -> Callable[[Unit], bytes]:
    """Open the networks in a process, on one thread."""
    if any(is_checkpoint(path) for path, *_ in specs):
        import torch

        torch.set_num_threads(1)
    models = [open_landmark_model(path, fused=fused, device=device) for path, fused, device in specs]
    return lambda unit: predict_unit(models, unit).to_bytes()
