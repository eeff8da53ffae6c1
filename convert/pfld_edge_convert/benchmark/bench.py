"""The benchmark: opens ONNX files, times them in turn, profiles them, and gives a report that is written to JSON.

docs/benchmarking.md explains the fields.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pfld_edge_convert.benchmark import processor, timing
from pfld_edge_convert.benchmark.profiling import ColdStart, Profile, cold_starts, take_profile
from pfld_edge_convert.errors import BenchmarkError
from pfld_edge_convert.landmark_models import devices_of, integer_layers, is_checkpoint, open_landmark_model
from pfld_edge_convert.model_file import load_onnx
from pfld_edge_runtime import Contract, ModelContractError, ModelFileError, fingerprint_image
from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_runtime.errors import naming
from pfld_edge_runtime.landmark_model import session_contract
from pfld_edge_runtime.networks import open_network
from pfld_edge_runtime.session import is_litert, open_session

FORMAT = "pfld-edge-bench-1"
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
class Timing:
    """One model with so many threads and faces; a batch takes several calls where the file fixes the number of faces.

    None: a percentile of too few rounds (20, 100), the ratio of the reference, processor time that can't be measured,
    the roofline of another runtime than onnxruntime.
    """

    threads: int
    batch: int
    calls: int
    median_ms: timing.Estimate
    p95_ms: float | None
    p99_ms: float | None
    ratio: timing.Estimate | None
    spread: float
    verdict: timing.SpeedVerdict
    reason: str
    roofline: processor.Roofline | None
    processor_ms: float | None = None
    processor_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One file in one runtime; `filled` are the sizes chosen for free axes besides the batch.

    `start` is None without fresh starts, `work` and `profile` where the runtime isn't onnxruntime. `integer_layers`
    counts the convolutions and products in integers, and all of them, where the runtime tells.
    """

    name: str
    path: str
    size: int
    filled: dict[str, int]
    work: processor.Work | None
    start: ColdStart | None
    timings: tuple[Timing, ...]
    profile: Profile | None
    runtime: str = "onnxruntime"
    integer_layers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """How to measure: numbers of threads and of faces, timed rounds, fresh processes for each model (0 for none).

    `precision` is the widest half interval of a ratio that counts as an answer; `from_crops` times normalization too.
    In a report, ratios are to the model of name `reference`, None where there is one model only.
    """

    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1,)
    rounds: int = 200
    starts: int = 5
    precision: float = 0.05
    from_crops: bool = False
    seed: int = 0
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All of it, the reference first where there is one."""

    environment: processor.Environment
    settings: BenchRequest
    models: tuple[ModelRecord, ...]

    @property
    def too_noisy(self) -> bool:
        """Whether some question stays without an answer."""
        verdicts = {found.verdict for model in self.models for found in model.timings}
        return timing.SpeedVerdict.TOO_NOISY in verdicts

    def to_json(self) -> str:
        """Write the format that docs/benchmarking.md describes."""
        record = {"format": FORMAT, "too_noisy": self.too_noisy, **asdict(self)}
        return json.dumps(record, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "BenchReport":
        """Read what `to_json` wrote; BenchmarkError where it is something else, or of another version."""
        from pydantic import TypeAdapter, ValidationError

        try:
            record = json.loads(text)
            if record["format"] != FORMAT:
                raise BenchmarkError(f"a benchmark record of format {record['format']!r}, this version reads {FORMAT}")
            return TypeAdapter(cls).validate_python(record)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BenchmarkError(f"not a whole benchmark record: {where}: {first['msg']}") from error
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise BenchmarkError(f"not a whole benchmark record: {error}") from error


@dataclass(frozen=True, slots=True)
class Subject:
    """A file to time, with shape (the batch as None where it is free) and type of each input.

    `device` is that of `open_network`, ``cpu`` for onnxruntime. `filled` are the free axes besides the batch and the
    sizes that were chosen for them; `free` names all free axes.
    """

    name: str
    path: Path
    contract: Contract | None
    shapes: dict[str, tuple[int | None, ...]]
    dtypes: dict[str, np.dtype[Any]]
    filled: dict[str, int]
    free: frozenset[str] = frozenset()
    device: str = "cpu"

    @property
    def elsewhere(self) -> bool:
        """Whether another runtime than onnxruntime runs it."""
        return self.device != "cpu" or is_litert(self.path)

    @property
    def end_to_end(self) -> bool:
        """Whether it takes a photograph and boxes."""
        return self.contract is not None and self.contract.end_to_end

    def calls(self, batch: int) -> int:
        """Number of calls that a batch takes; an error where the file's fixed number of faces doesn't divide it."""
        fixed = next(iter(self.shapes.values()))[:1]
        if self.end_to_end or fixed in ((), (None,)):
            return 1
        size = fixed[0] or 1
        if batch % size:
            raise BenchmarkError(f"{self.path} takes exactly {size} a call: a batch of {batch} can't be timed")
        return batch // size

    def feed(self, batch: int) -> dict[str, NDArray[Any]]:
        """Make the inputs of one call of a batch, the same in every run."""
        batch //= self.calls(batch)
        if self.end_to_end:
            return dict(zip(self.shapes, _photo_and_boxes(batch), strict=True))
        random, feed = np.random.default_rng(_SEED), {}
        for name, shape in self.shapes.items():
            sizes, dtype = [batch if size is None else size for size in shape], self.dtypes[name]
            most = 2 if dtype.kind == "b" else 100
            values = random.uniform(-1, 1, sizes) if dtype.kind == "f" else random.integers(0, most, sizes)
            feed[name] = values.astype(dtype)
        return feed

    def network_call(self, threads: int, batch: int) -> Callable[[], object]:
        """Open the network as the runtime does, and make a call that runs a batch through it."""
        feed, calls = self.feed(batch), range(self.calls(batch))
        if self.elsewhere:
            run, (prepared,) = open_network(self.path, self.device, threads).run, feed.values()
            return lambda: [run(prepared) for _ in calls]
        session = open_session(self.path, threads=threads)

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
        """Make a call from uint8 crops to landmarks: normalization and network, as the runtime runs them."""
        if self.end_to_end:
            raise BenchmarkError(f"{self.path} is an end-to-end graph and takes no crops: leave out --from-crops")
        try:
            model = open_landmark_model(self.path, threads, device=self.device)
        except ModelContractError as error:
            raise BenchmarkError(f"{self.path} can't run on crops: {error}") from error
        crops = np.repeat(fingerprint_image(_SEED, model.contract.input_size)[None], batch, axis=0)
        return lambda: model.predict(crops)


def open_subjects(
    paths: Sequence[Path], sizes: Mapping[str, int] | None = None, runtimes: Sequence[str] = ()
) -> list[Subject]:
    """Open files (`open_subject`), each in `devices_of` the runtimes, and give them names that tell them apart.

    A file may come twice.

    BenchmarkError where no file has an axis that a size is given for.
    """
    subjects = []
    for path in paths:
        own = open_subject(path, sizes)
        devices = devices_of(path, runtimes, own.contract)
        subjects += [own if device == "cpu" else open_subject(path, sizes, device) for device in devices]
    free = sorted({name for subject in subjects for name in subject.free})
    for name in sizes or ():
        if name not in free:
            raise BenchmarkError(f"no file has a free axis {name!r}; free are: {', '.join(free) or 'none'}")
    files = Counter(path.name for path in {subject.path for subject in subjects})
    named: list[Subject] = []
    for subject in subjects:
        name = str(subject.path) if files[subject.name] > 1 else subject.name
        name += f" ({subject.device})" if subject.device != "cpu" else ""
        uses = sum((other.path, other.device) == (subject.path, subject.device) for other in named)
        named.append(replace(subject, name=f"{name} ({uses + 1})" if uses else name))
    return named


def open_subject(path: Path, sizes: Mapping[str, int] | None = None, device: str = "cpu") -> Subject:
    """Look at the inputs of an ONNX file with one input, of a LiteRT file, or of an end-to-end graph.

    Free axes get the size of their name, 320 where it is left out; the first stays free, it is the batch.
    ModelFileError where the file is missing or not an ONNX model, BenchmarkError where it is a checkpoint, or has
    several inputs, or one that isn't a tensor of numbers.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    if is_checkpoint(path):
        raise BenchmarkError(
            f"{path} is a checkpoint; bench times what devices run: make an ONNX file of it with `pfld-edge convert`"
        )
    if is_litert(path):
        told = open_landmark_model(path).contract
        shape = (1, told.input_size, told.input_size, 3)
        return Subject(
            path.name, path, told, {"input": shape}, {"input": np.dtype(told.input_dtype)}, {}, device=device
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
    if device == "openvino":  # its networks take one face a call
        shapes = {name: (1, *shape[1:]) for name, shape in shapes.items()}
    return Subject(path.name, path, contract, shapes, dtypes, filled, frozenset(free), device)


def _shape(value: onnxruntime.NodeArg, sizes: Mapping[str, int], filled: dict[str, int]) -> tuple[int | None, ...]:
    shape: list[int | None] = []
    for axis, size in enumerate(value.shape):
        name = size if isinstance(size, str) and size else f"{value.name}[{axis}]"
        if isinstance(size, int) and size > 0:
            shape.append(size)
        elif axis == 0 and size not in sizes:
            shape.append(None)
        else:
            shape.append(sizes.get(name, _SIDE))
            if size not in sizes:
                filled[name] = sizes.get(name, _SIDE)
    return tuple(shape)


def _dtype(path: Path, value: onnxruntime.NodeArg) -> np.dtype[Any]:
    names = {"float": "float32", "double": "float64"}
    found = re.fullmatch(r"tensor\((float|double|float16|u?int(?:8|16|32|64)|bool)\)", value.type)
    if found is None:
        raise BenchmarkError(f"{path}: bench can't make an input of type {value.type}")
    return np.dtype(names.get(found[1], found[1]))


def _photo_and_boxes(faces: int) -> tuple[Uint8Array, Float32Array]:
    random = np.random.default_rng(_SEED)
    corners = np.c_[random.uniform(0, 1400, faces), random.uniform(0, 600, faces)]
    return random.integers(0, 256, FRAME, np.uint8), np.c_[corners, corners + 300].astype(np.float32)


def run_bench(subjects: Sequence[Subject], request: BenchRequest, advance: Advance = lambda _: None) -> BenchReport:
    """Measure; where there are several subjects, the first is what the others are compared with.

    `advance` is told 1 after each of `steps` rounds and processes. BenchmarkError where a file can't be run as asked.
    """
    load, order = processor.load_average(), product(request.threads, request.batches, range(len(subjects)))
    cases: list[Case] = [(index, threads, batch) for threads, batch, index in order]
    calls: dict[Case, Callable[[], object]] = {}
    for index, threads, batch in cases:
        open_call = subjects[index].crops_call if request.from_crops else subjects[index].network_call
        calls[index, threads, batch] = open_call(threads, batch)
    # Before and after, and the better of both counts.
    peaks = {threads: processor.measure_peak(threads) for threads in request.threads}
    times = timing.take_turns(calls, request.rounds, warm_up=_WARM_UP, seed=request.seed, advance=advance)
    first = {"threads": request.threads[0], "batch": request.batches[0]}
    starts = cold_starts(subjects, request.starts, **first, advance=advance) if request.starts else None
    plain = [case for case in cases if not subjects[case[0]].elsewhere]
    profiles = {case: take_profile(subjects[case[0]], *case[1:]) for case in plain}
    peaks = {threads: processor.measure_peak(threads).best(peak) for threads, peak in peaks.items()}
    models = []
    for index, subject in enumerate(subjects):
        feed, timings = subject.feed(request.batches[0]), []
        work = None if subject.elsewhere else processor.work_of(load_onnx(subject.path), feed)
        for case in (case for case in cases if case[0] == index):
            line, count = None, subject.calls(case[2])
            if work is not None:
                moved, taken = profiles[case].activation_bytes, times[case].milliseconds
                line = processor.roofline(work, case[2], moved, taken, peaks[case[1]], calls=count)
            timings.append(_timing(case, times, count, line, request))
        file = subject.name, str(subject.path), subject.path.stat().st_size
        start = None if starts is None else starts[index]
        profile = profiles.get((index, request.threads[0], request.batches[0]))
        models.append(ModelRecord(*file, subject.filled, work, start, tuple(timings), profile, *_layers(subject)))
    reference = subjects[0].name if len(subjects) > 1 else None
    return BenchReport(
        processor.environment([*peaks.values()], load), replace(request, reference=reference), tuple(models)
    )


def _layers(subject: Subject) -> tuple[str, tuple[int, int] | None]:
    """Runtime of a file, and how many of its layers compute in integers; see `ModelRecord`."""
    if subject.contract is None or subject.end_to_end:
        return "onnxruntime", None
    model = open_landmark_model(subject.path, device=subject.device)
    return model.runtime, integer_layers(model)


def steps(subjects: Sequence[Subject], request: BenchRequest) -> int:
    """How often `run_bench` tells of its progress."""
    return _WARM_UP + request.rounds + request.starts * len(subjects)


def _timing(
    case: Case,
    all_times: Mapping[Case, timing.Times],
    calls: int,
    line: processor.Roofline | None,
    request: BenchRequest,
) -> Timing:
    (index, threads, batch), times, seed = case, all_times[case], request.seed
    middle, ratio, processor_ratio = timing.median_of(times.wall, seed), None, None
    if index:
        reference = all_times[0, threads, batch]
        ratio, processor_ratio = (
            timing.ratio_of_medians(times.wall, reference.wall, seed),
            times.processor_ratio(reference),
        )
        judgement = timing.judge(times, reference, ratio, request.precision)
    else:
        judgement = timing.judge(times, None, middle, request.precision)
        if any(other for other, *_ in all_times):
            judgement = timing.Judgement(timing.SpeedVerdict.REFERENCE, judgement.spread)
    # So few rounds have no such percentile.
    p95, p99 = (
        float(np.percentile(times.wall, percent)) if len(times.wall) * (100 - percent) >= 100 else None
        for percent in (95, 99)
    )
    answer = judgement.spread, judgement.verdict, judgement.reason
    return Timing(threads, batch, calls, middle, p95, p99, ratio, *answer, line, times.processor_ms, processor_ratio)
