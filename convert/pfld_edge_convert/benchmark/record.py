"""The record of a benchmark: dataclasses that are written to JSON and read back.

docs/benchmarking.md explains the fields.
"""

import json
from dataclasses import asdict, dataclass

from pfld_edge_convert.benchmark.processor import Environment, Roofline, Work
from pfld_edge_convert.benchmark.profiling import ColdStart, Profile
from pfld_edge_convert.benchmark.timing import Estimate, Verdict
from pfld_edge_convert.errors import BenchmarkError

FORMAT = "pfld-edge-bench-1"


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for; ratios are to the model of name `reference`, None where there is one model only."""

    rounds: int
    starts: int
    precision: float
    from_crops: bool
    reference: str | None


@dataclass(frozen=True, slots=True)
class Timing:
    """One model with so many threads and faces; a batch takes several calls where the file fixes the number of faces.

    None: a percentile of too few rounds (20, 100), the ratio of the reference, processor time that can't be measured.
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
    """One file; `filled` are the sizes chosen for free axes besides the batch, `start` is None without fresh starts."""

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
    """All of it, the reference first where there is one."""

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
