"""What `bench` prints: tables of times, starts, shares of the peak and operators; and runtimes side by side."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from pfld_edge.console import new_table
from pfld_edge_convert.benchmark.bench import BenchReport, ModelRecord, Timing
from pfld_edge_convert.benchmark.timing import Estimate, SpeedVerdict
from pfld_edge_convert.landmark_models import RuntimeResult

_OPERATORS = 5


def bench_tables(report: BenchReport) -> Iterator[Table]:
    """Lay a report out: times, starts, share of the peak, operators."""
    for place in range(len(report.models[0].timings)):
        yield _time_table(report, place)
    if report.models[0].start is not None:
        yield _start_table(report)
    yield _roofline_table(report)
    yield _operator_table(report)


def noise_lines(report: BenchReport) -> list[str]:
    """Say where the machine was too noisy, why, and what to do."""
    lines = [
        f"Too noisy to tell: {model.name}, {_case(timing)}: {timing.reason}"
        for model in report.models
        for timing in model.timings
        if timing.verdict is SpeedVerdict.TOO_NOISY
    ]
    if lines:
        load, cores = report.environment.load, report.environment.cores
        busy = "" if load is None else f" (before this run {load:.1f} processes wanted its {cores} cores)"
        lines.append(f"Let the machine rest{busy}, raise --rounds, or accept less with --precision.")
    return lines


def runtime_table(results: Sequence[RuntimeResult]) -> Table:
    """Lay out how each runtime ran each file."""
    reference = next((result.reference for result in results if result.reference is not None), None)
    caption = "CPU ms: processor time of one face, all threads; deviations as fractions of the eye distance"
    title = "Runtimes" + ("" if reference is None else f"; deviation from {reference}")
    table = new_table(title, "model", figures=("layers in integers", "CPU ms", "deviation", "largest"), caption=caption)
    for result in results:
        layers = "-" if result.layers is None else f"{result.integer_layers} of {result.layers}"
        far = (result.mean_deviation, result.largest_deviation)
        moved = ("-" if value is None else f"{value:.5f}" for value in far)
        table.add_row(result.name, layers, _or_dash(result.milliseconds), *moved)
    return table


def float_lines(results: Sequence[RuntimeResult]) -> list[str]:
    """Name the quantized files of which a runtime computes no layer in integers."""
    return [
        f"{result.name}: {result.runtime} computes its {result.layers} layers in float, none in integers"
        for result in results
        if result.quantized and result.layers and not result.integer_layers
    ]


def _time_table(report: BenchReport, place: int) -> Table:
    first = report.models[0].timings[place]
    start = "from uint8 crops" if report.settings.from_crops else "the network alone"
    compared = len(report.models) > 1
    names = ["median", "CPU", *(["a face"] if first.batch > 1 else []), "p95", "p99", *(["ratio"] if compared else [])]
    title = f"{_case(first)}, {start}: milliseconds, {report.settings.rounds} rounds"
    caption = "in brackets: 95 % intervals; CPU: processor time of all threads; ratio: to the first file's median"
    table = new_table(title, "model", figures=names, caption=caption)
    table.add_column("verdict")
    for model in report.models:
        timing = model.timings[place]
        per_face = [figure(timing.median_ms.value / timing.batch)] if timing.batch > 1 else []
        ratio = [_ratio(timing)] if compared else []
        calls = f" ({timing.calls} calls)" if timing.calls > 1 else ""
        table.add_row(
            model.name + calls,
            _estimate(timing.median_ms),
            _or_dash(timing.processor_ms),
            *per_face,
            *(_or_dash(value) for value in (timing.p95_ms, timing.p99_ms)),
            *ratio,
            timing.verdict.value,
        )
    return table


def _ratio(timing: Timing) -> str:
    """No middle figure where the interval says that there is none to name."""
    if timing.ratio is None:
        return "1"
    if timing.verdict is SpeedVerdict.TOO_NOISY:
        ends = [timing.ratio.low, timing.ratio.high]
        if timing.processor_ratio is not None:
            ends.append(timing.processor_ratio)
        return f"{figure(min(ends))} to {figure(max(ends))}"
    return _estimate(timing.ratio)


def _start_table(report: BenchReport) -> Table:
    table = new_table(
        f"A fresh process, {_case(report.models[0].timings[0])}: medians of {report.settings.starts}",
        "model",
        figures=("file kB", "cold ms", "import ms", "load ms", "first call ms", "process MB", "model's MB"),
        caption="cold: from the start of Python to the first result; load: opening the file; MB: resident memory",
    )
    for model in report.models:
        start = model.start
        if start is not None:
            times = (start.cold_ms, start.import_ms, start.load_ms, start.first_ms)
            memory = (start.resident_mb, start.model_mb)
            table.add_row(
                model.name,
                f"{model.size / 1000:.0f}",
                *(f"{value:.1f}" for value in times),
                *("-" if value is None else f"{value:.1f}" for value in memory),
            )
    return table


def _roofline_table(report: BenchReport) -> Table:
    peaks = "; ".join(
        f"{_threads(peak.threads)}: fp32 {peak.float_gmacs:.0f}, INT8 {peak.int8_gmacs:.0f} GMAC/s, "
        f"{peak.bandwidth_gbs:.0f} GB/s"
        for peak in report.environment.peaks
    )
    table = new_table(
        "Share of the processor's peak",
        "model",
        "threads, faces",
        figures=("MACs", "MB moved", "MACs / byte", "ideal ms", "share of peak"),
        caption=f"measured peak of {peaks}; (memory): too few MACs a byte to reach the peak without caches",
    )
    for model in report.models:
        for timing in model.timings:
            line = timing.roofline
            if line is None:
                continue
            table.add_row(
                model.name,
                f"{timing.threads}, {timing.batch}",
                f"{line.macs / 1e6:.1f} M",
                f"{line.bytes_moved / 1e6:.1f}",
                f"{line.intensity:.1f}" + (" (memory)" if line.intensity < line.ridge else ""),
                f"{line.ideal_ms:.3f}",
                f"{line.share_of_peak:.0%}",
            )
    return table


def _operator_table(report: BenchReport) -> Table:
    title = f"Where the time goes, {_case(report.models[0].timings[0])}"
    caption = "in integers: convolutions and products; profiling itself takes some of the time between nodes"
    operators = "operators, number of nodes, share of the call"
    table = new_table(title, "model", "runtime", "in integers", operators, caption=caption)
    for model in report.models:
        layers = "-" if model.integer_layers is None else "{} of {}".format(*model.integer_layers)
        table.add_row(model.name, model.runtime, layers, _operators(model))
    return table


def _operators(model: ModelRecord) -> str:
    if model.profile is None:
        return "-"
    shown = model.profile.operators[:_OPERATORS]
    parts = [f"{item.op_type} ({item.nodes}) {item.share:.0%}" for item in shown]
    rest = sum(item.share for item in model.profile.operators[_OPERATORS:])
    if rest:
        parts.append(f"others {rest:.0%}")
    return ", ".join([*parts, f"between nodes {model.profile.between:.0%}"])


def _case(timing: Timing) -> str:
    return f"{_threads(timing.threads)}, {timing.batch} face{'s' if timing.batch > 1 else ''}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _estimate(found: Estimate) -> str:
    return f"{figure(found.value)} ({figure(found.low)} to {figure(found.high)})"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else figure(value)


def figure(value: float) -> str:
    """Write a positive figure with three digits."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"
