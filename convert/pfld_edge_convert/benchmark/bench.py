"""The benchmark: opens ONNX files, times them in turn, profiles them, and returns a report."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pfld_edge_convert.benchmark.processor import (
    Feed,
    Peak,
    Work,
    environment,
    load_average,
    measure_peak,
    roofline,
    work_of,
)
from pfld_edge_convert.benchmark.profiling import ColdStart, Profile, cold_starts, take_profile
from pfld_edge_convert.benchmark.record import BenchReport, ModelRecord, Settings, Timing
from pfld_edge_convert.benchmark.timing import Judgement, Times, Verdict, judge, median_of, ratio_of_medians, take_turns
from pfld_edge_convert.errors import BenchmarkError
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_convert.model_file import load_onnx
from pfld_edge_runtime import Contract, ModelContractError, ModelFileError, fingerprint_image
from pfld_edge_runtime.errors import naming
from pfld_edge_runtime.landmark_model import session_contract
from pfld_edge_runtime.session import open_session

Float = NDArray[np.float64]
Case = tuple[int, int, int]
"""Index of a subject, threads, batch."""

Advance = Callable[[int], None]

FRAME = (1080, 1920, 3)
"""The photograph that an end-to-end graph is given."""

_WARM_UP = 10

_SIDE = 320
"""For free axes that aren't the batch: what small face detectors are commonly fed."""

_SEED = 1


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """How to measure.

    Attributes:
        threads: Numbers of threads, at least one.
        batches: Numbers of faces, at least one.
        rounds: Timed rounds.
        starts: Fresh processes for each model; 0 for none.
        precision: Widest half interval of a ratio that counts as an answer.
        from_crops: Time normalization too.
        seed: Of the orders and the resampling.
    """

    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1,)
    rounds: int = 200
    starts: int = 5
    precision: float = 0.05
    from_crops: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Subject:
    """An ONNX file to time.

    Attributes:
        name: For tables.
        path: The file.
        contract: What the file says of itself; None where it says nothing.
        shapes: Shape of each input, the batch as None where it is free.
        dtypes: Of each input.
        filled: Free axes besides the batch, and the sizes that were chosen for them.
        free: Names of all free axes.
    """

    name: str
    path: Path
    contract: Contract | None
    shapes: dict[str, tuple[int | None, ...]]
    dtypes: dict[str, np.dtype[Any]]
    filled: dict[str, int]
    free: frozenset[str] = frozenset()

    @property
    def end_to_end(self) -> bool:
        """Whether it takes a photograph and boxes."""
        return self.contract is not None and self.contract.end_to_end

    def calls(self, batch: int) -> int:
        """Number of calls that a batch takes.

        Raises:
            BenchmarkError: The file takes a fixed number of faces, which doesn't divide the batch.
        """
        fixed = next(iter(self.shapes.values()))[:1]
        if self.end_to_end or fixed in ((), (None,)):
            return 1
        size = fixed[0] or 1
        if batch % size:
            raise BenchmarkError(f"{self.path} takes exactly {size} a call: a batch of {batch} can't be timed")
        return batch // size

    def feed(self, batch: int) -> Feed:
        """Make the inputs of one call of a batch, the same in every run."""
        batch //= self.calls(batch)
        if self.end_to_end:
            return _photo_and_boxes(self.shapes, batch)
        random = np.random.default_rng(_SEED)
        return {
            name: _noise(random, tuple(batch if size is None else size for size in shape), self.dtypes[name])
            for name, shape in self.shapes.items()
        }

    def network_call(self, threads: int, batch: int) -> Callable[[], object]:
        """Open the network as the runtime does, and make a call that runs a batch through it.

        Raises:
            BenchmarkError: It can't run what it is fed.
        """
        session, feed, calls = open_session(self.path, threads=threads), self.feed(batch), range(self.calls(batch))

        def call() -> None:
            for _ in calls:
                session.run(None, feed)

        try:
            call()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise BenchmarkError(f"{self.path} can't run what bench feeds it: {reason}") from error
        return call

    def crops_call(self, threads: int, batch: int) -> Callable[[], object]:
        """Make a call from uint8 crops to landmarks: normalization and network, as the runtime runs them.

        Raises:
            BenchmarkError: The file is an end-to-end graph, which takes no crops, or no landmark network.
        """
        if self.end_to_end:
            raise BenchmarkError(f"{self.path} is an end-to-end graph and takes no crops: leave out --from-crops")
        try:
            model = open_landmark_model(self.path, threads)
        except ModelContractError as error:
            raise BenchmarkError(f"{self.path} can't run on crops: {error}") from error
        crops = np.repeat(fingerprint_image(_SEED, model.contract.input_size)[None], batch, axis=0)
        return lambda: model.predict(crops)


def open_subjects(paths: Sequence[Path], sizes: Mapping[str, int] | None = None) -> list[Subject]:
    """Open files and give them names that tell them apart; a file may come twice, to be measured against itself.

    Raises:
        ModelFileError: See `open_subject`.
        BenchmarkError: See `open_subject`; or no file has an axis that a size is given for.
    """
    subjects = [open_subject(path, sizes) for path in paths]
    free = sorted({name for subject in subjects for name in subject.free})
    for name in sizes or ():
        if name not in free:
            raise BenchmarkError(f"no file has a free axis {name!r}; free are: {', '.join(free) or 'none'}")
    files = Counter(path.name for path in {subject.path for subject in subjects})
    named: list[Subject] = []
    for subject in subjects:
        name = str(subject.path) if files[subject.name] > 1 else subject.name
        uses = sum(other.path == subject.path for other in named)
        named.append(replace(subject, name=f"{name} ({uses + 1})" if uses else name))
    return named


def open_subject(path: Path, sizes: Mapping[str, int] | None = None) -> Subject:
    """Look at a file's inputs.

    Args:
        path: An ONNX file with one input, or an end-to-end graph.
        sizes: Sizes for free axes by name; 320 for others, and the batch for the first.

    Raises:
        ModelFileError: The file is missing or not an ONNX model.
        BenchmarkError: It is a checkpoint, or has several inputs, or one that isn't a tensor of numbers.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    if path.suffix.lower() in (".pth", ".pt"):
        raise BenchmarkError(
            f"{path} is a checkpoint; bench times what devices run: make an ONNX file of it with `pfld-edge convert`"
        )
    session = open_session(path)
    with naming(path):
        contract, inputs = session_contract(session), session.get_inputs()
    if len(inputs) != 1 and not (contract is not None and contract.end_to_end):
        names = ", ".join(value.name for value in inputs)
        raise BenchmarkError(f"{path} has {len(inputs)} inputs ({names}); bench times networks with one")
    filled: dict[str, int] = {}
    shapes = {value.name: _shape(value, sizes or {}, filled) for value in inputs}
    free = filled.keys() | {size for value in inputs for size in value.shape if isinstance(size, str)}
    if len(inputs) > 1:  # an end-to-end graph: the photograph's sides aren't chosen here
        filled.clear()
    dtypes = {value.name: _dtype(path, value) for value in inputs}
    return Subject(path.name, path, contract, shapes, dtypes, filled, frozenset(free))


def _shape(value: onnxruntime.NodeArg, sizes: Mapping[str, int], filled: dict[str, int]) -> tuple[int | None, ...]:
    shape: list[int | None] = []
    for axis, size in enumerate(value.shape):
        if isinstance(size, int) and size > 0:
            shape.append(size)
        elif isinstance(size, str) and size in sizes:
            shape.append(sizes[size])
        elif axis == 0:
            shape.append(None)
        else:
            name = size if isinstance(size, str) and size else f"{value.name}[{axis}]"
            filled[name] = sizes.get(name, _SIDE)
            shape.append(filled[name])
    return tuple(shape)


def _dtype(path: Path, value: onnxruntime.NodeArg) -> np.dtype[Any]:
    names = {"float": "float32", "double": "float64"}
    found = re.fullmatch(r"tensor\((float|double|float16|u?int(?:8|16|32|64)|bool)\)", value.type)
    if found is None:
        raise BenchmarkError(f"{path}: bench can't make an input of type {value.type}")
    return np.dtype(names.get(found[1], found[1]))


def _noise(random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "f":
        return random.uniform(-1, 1, shape).astype(dtype)
    return random.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)


def _photo_and_boxes(shapes: Mapping[str, tuple[int | None, ...]], faces: int) -> Feed:
    random = np.random.default_rng(_SEED)
    corners = np.stack([random.uniform(0, 1400, faces), random.uniform(0, 600, faces)], axis=1)
    boxes = np.concatenate([corners, corners + 300], axis=1).astype(np.float32)
    values = (random.integers(0, 256, FRAME, np.uint8), boxes)
    return dict(zip(shapes, values, strict=True))


@dataclass(slots=True)
class _Measured:
    """What was measured of all subjects."""

    times: dict[Case, Times]
    starts: list[ColdStart] | None
    profiles: dict[Case, Profile]
    peaks: dict[int, Peak]
    works: list[Work]


def run_bench(subjects: Sequence[Subject], request: BenchRequest, advance: Advance = lambda _: None) -> BenchReport:
    """Measure.

    Args:
        subjects: At least one; where there are more, the first is what the others are compared with.
        request: How.
        advance: Told 1 after each of `steps` rounds and processes.

    Raises:
        BenchmarkError: A file can't be run as asked.
    """
    load = load_average()
    cases = [
        (index, threads, batch)
        for threads in request.threads
        for batch in request.batches
        for index in range(len(subjects))
    ]
    calls: dict[Case, Callable[[], object]] = {}
    for index, threads, batch in cases:
        open_call = subjects[index].crops_call if request.from_crops else subjects[index].network_call
        calls[index, threads, batch] = open_call(threads, batch)
    # Before and after, and the better of both counts.
    peaks = {threads: measure_peak(threads) for threads in request.threads}
    measured = _Measured(
        take_turns(calls, request.rounds, warm_up=_WARM_UP, seed=request.seed, advance=advance),
        _cold_starts(subjects, request, advance),
        {case: take_profile(subjects[case[0]], *case[1:]) for case in cases},
        {threads: measure_peak(threads).best(peak) for threads, peak in peaks.items()},
        [work_of(load_onnx(subject.path), subject.feed(request.batches[0])) for subject in subjects],
    )
    reference = subjects[0].name if len(subjects) > 1 else None
    settings = Settings(request.rounds, request.starts, request.precision, request.from_crops, reference)
    return BenchReport(
        environment(list(measured.peaks.values()), load),
        settings,
        tuple(_record(subject, index, measured, request) for index, subject in enumerate(subjects)),
    )


def steps(subjects: Sequence[Subject], request: BenchRequest) -> int:
    """How often `run_bench` tells of its progress."""
    return _WARM_UP + request.rounds + request.starts * len(subjects)


def _cold_starts(subjects: Sequence[Subject], request: BenchRequest, advance: Advance) -> list[ColdStart] | None:
    if not request.starts:
        return None
    threads, batch = request.threads[0], request.batches[0]
    return cold_starts(subjects, request.starts, threads=threads, batch=batch, advance=advance)


def _record(subject: Subject, place: int, measured: _Measured, request: BenchRequest) -> ModelRecord:
    cases = [case for case in measured.times if case[0] == place]
    return ModelRecord(
        name=subject.name,
        path=str(subject.path),
        size=subject.path.stat().st_size,
        filled=subject.filled,
        work=measured.works[place],
        start=None if measured.starts is None else measured.starts[place],
        timings=tuple(_timing(subject, case, measured, request) for case in cases),
        profile=measured.profiles[cases[0]],
    )


def _timing(subject: Subject, case: Case, measured: _Measured, request: BenchRequest) -> Timing:
    place, threads, batch = case
    times, seed, calls = measured.times[case], request.seed, subject.calls(batch)
    middle, ratio, processor_ratio = median_of(times.wall, seed), None, None
    if place:
        reference = measured.times[0, threads, batch]
        ratio, processor_ratio = ratio_of_medians(times.wall, reference.wall, seed), times.processor_ratio(reference)
        judgement = judge(times, reference, ratio, request.precision)
    else:
        judgement = judge(times, None, middle, request.precision)
        if len(measured.works) > 1:
            judgement = Judgement(Verdict.REFERENCE, judgement.spread)
    return Timing(
        threads,
        batch,
        calls,
        middle,
        _percentile(times.wall, 95),
        _percentile(times.wall, 99),
        ratio,
        judgement.spread,
        judgement.verdict,
        judgement.reason,
        roofline(
            measured.works[place],
            batch,
            measured.profiles[case].activation_bytes,
            middle.value,
            measured.peaks[threads],
            calls=calls,
        ),
        times.processor_ms,
        processor_ratio,
    )


def _percentile(times: Float, percent: int) -> float | None:
    """None where so few rounds have no such percentile."""
    return float(np.percentile(times, percent)) if len(times) * (100 - percent) >= 100 else None
