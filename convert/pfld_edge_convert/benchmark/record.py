"""The record of a benchmark: dataclasses that are written to JSON and read back."""

import json
from dataclasses import asdict, dataclass

from pfld_edge_convert.benchmark.processor import Environment, Roofline, Work
from pfld_edge_convert.benchmark.profiling import ColdStart, Profile
from pfld_edge_convert.benchmark.timing import Estimate, Verdict
from pfld_edge_convert.errors import BenchmarkError

FORMAT = "pfld-edge-bench-1"


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for.

    Attributes:
        rounds: Timed rounds; every model runs once in each.
        starts: Fresh processes for each model.
        precision: Widest half interval that counts as an answer.
        from_crops: Whether calls start from uint8 crops (normalization is timed too) or from the network's input.
        reference: Name of the model that ratios are to; None where there is one model only.
    """

    rounds: int
    starts: int
    precision: float
    from_crops: bool
    reference: str | None


@dataclass(frozen=True, slots=True)
class Timing:
    """One model with so many threads and faces.

    Attributes:
        threads: onnxruntime's threads.
        batch: Faces.
        calls: Calls that the batch took: more than one where the file takes a fixed number of faces.
        median_ms: Median of a batch, milliseconds, with its 95 % interval.
        p95_ms: 95th percentile; None under 20 rounds, where there is none to tell.
        p99_ms: 99th percentile; None under 100 rounds.
        ratio: Of the medians, to the reference with as many threads and faces; None for the reference itself.
        spread: How far blocks of rounds lie apart, as a share.
        verdict: What the figures allow to say.
        reason: Why they allow nothing; else empty.
        roofline: Share of the processor's peak.
        processor_ms: Median processor time of a batch, all threads; None where the system can't measure it.
        processor_ratio: Of the median processor times, to the reference.
    """

    threads: int
    batch: int
    calls: int
    median_ms: Estimate
    p95_ms: float | None
    p99_ms: float | None
    ratio: Estimate | None
    spread: float
    verdict: Verdict
    reason: str
    roofline: Roofline
    processor_ms: float | None = None
    processor_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One file.

    Attributes:
        name: For tables; unique in the report.
        path: As it was given.
        size: Bytes.
        filled: Free axes besides the batch, with the sizes that were chosen.
        work: What it does for one face.
        start: Fresh processes; None where none were asked for.
        timings: One for each number of threads and faces.
        profile: Where the time goes, with the first number of threads and of faces.
    """

    name: str
    path: str
    size: int
    filled: dict[str, int]
    work: Work
    start: ColdStart | None
    timings: tuple[Timing, ...]
    profile: Profile


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All of it.

    Attributes:
        environment: Where.
        settings: What was asked for.
        models: The reference first, where there is one.
    """

    environment: Environment
    settings: Settings
    models: tuple[ModelRecord, ...]

    @property
    def too_noisy(self) -> bool:
        """Whether some question stays without an answer."""
        return any(timing.verdict is Verdict.TOO_NOISY for model in self.models for timing in model.timings)

    def to_json(self) -> str:
        """Write the format that docs/benchmarking.md describes."""
        record = {"format": FORMAT, "too_noisy": self.too_noisy, **asdict(self)}
        return json.dumps(record, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "BenchReport":
        """Read what `to_json` wrote.

        Raises:
            BenchmarkError: It is something else, or of another version.
        """
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
