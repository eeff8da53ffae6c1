"""The whole benchmark: files in, a report out."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_convert.benchmark.cold_start import ColdStart, cold_starts
from pfld_edge_convert.benchmark.environment import environment, load_average
from pfld_edge_convert.benchmark.intervals import median_of, ratio_of_medians
from pfld_edge_convert.benchmark.operators import Profile, take_profile
from pfld_edge_convert.benchmark.peak import Peak, measure_peak
from pfld_edge_convert.benchmark.record import BenchReport, ModelRecord, Settings, Timing
from pfld_edge_convert.benchmark.roofline import Work, roofline, work_of
from pfld_edge_convert.benchmark.subject import Subject, open_subject
from pfld_edge_convert.benchmark.turns import take_turns
from pfld_edge_convert.benchmark.verdict import Judgement, Verdict, judge
from pfld_edge_convert.onnx_file import load_onnx

__all__ = ["BenchRequest", "open_subjects", "run_bench", "steps"]

Float = NDArray[np.float64]
Case = tuple[int, int, int]
"""Place of a subject, threads, batch."""

Advance = Callable[[int], None]

_WARM_UP = 10


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


@dataclass(slots=True)
class _Measured:
    """What was measured of all subjects."""

    times: dict[Case, Float]
    starts: list[ColdStart] | None
    profiles: dict[Case, Profile]
    peaks: dict[int, Peak]
    works: list[Work] = field(default_factory=list)


def open_subjects(paths: Sequence[Path], sizes: Mapping[str, int] | None = None) -> list[Subject]:
    """Open files and give them names that tell them apart; a file may come twice, to be measured against itself.

    Raises:
        ModelFileError: See `open_subject`.
        BenchmarkError: See `open_subject`.
    """
    subjects = [open_subject(path, sizes) for path in paths]
    files = Counter(path.name for path in {subject.path for subject in subjects})
    named: list[Subject] = []
    for subject in subjects:
        name = str(subject.path) if files[subject.name] > 1 else subject.name
        uses = sum(other.path == subject.path for other in named)
        named.append(replace(subject, name=f"{name} ({uses + 1})" if uses else name))
    return named


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
        (place, threads, batch)
        for threads in request.threads
        for batch in request.batches
        for place in range(len(subjects))
    ]
    calls = {case: _call(subjects[case[0]], case, request) for case in cases}
    peaks = {threads: measure_peak(threads) for threads in request.threads}
    times = take_turns(calls, request.rounds, warm_up=_WARM_UP, seed=request.seed, advance=advance)
    measured = _Measured(
        times,
        _cold_starts(subjects, request, advance),
        {case: take_profile(subjects[case[0]], *case[1:]) for case in cases},
        {threads: measure_peak(threads).best(peak) for threads, peak in peaks.items()},
    )
    for subject in subjects:
        feed = subject.feed(request.batches[0])
        measured.works.append(work_of(load_onnx(subject.path), feed))
    reference = subjects[0].name if len(subjects) > 1 else None
    settings = Settings(request.rounds, request.starts, request.precision, request.from_crops, reference)
    return BenchReport(
        environment(list(measured.peaks.values()), load),
        settings,
        tuple(_record(subject, place, measured, request) for place, subject in enumerate(subjects)),
    )


def steps(subjects: Sequence[Subject], request: BenchRequest) -> int:
    """How often `run_bench` tells of its progress."""
    return _WARM_UP + request.rounds + request.starts * len(subjects)


def _call(subject: Subject, case: Case, request: BenchRequest) -> Callable[[], object]:
    make = subject.crops_call if request.from_crops else subject.network_call
    return make(*case[1:])


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
    middle, ratio = median_of(times, seed), None
    if place:
        reference = measured.times[0, threads, batch]
        ratio = ratio_of_medians(times, reference, seed)
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
        _percentile(times, 95),
        _percentile(times, 99),
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
    )


def _percentile(times: Float, percent: int) -> float | None:
    """None where so few rounds have no such percentile."""
    return float(np.percentile(times, percent)) if len(times) * (100 - percent) >= 100 else None
