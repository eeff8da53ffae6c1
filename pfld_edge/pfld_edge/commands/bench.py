"""`pfld-edge bench`: how fast files are, against each other, and how far that can be trusted."""

from pathlib import Path
from typing import Any

import click

from pfld_edge.options import AXIS_SIZE, NUMBER_LIST, PATH, SHARE, json_option, result_file, runtime_option


@click.command("bench")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=PATH)
@runtime_option
@click.option("--against", type=PATH, help="The file that ratios are to; else the first MODEL.")
@click.option("--threads", type=NUMBER_LIST, default="1", show_default=True, help="Numbers of threads, e.g. 1,2.")
@click.option(
    "--batch", "batches", type=NUMBER_LIST, default="1", show_default=True, help="Numbers of faces a call, e.g. 1,8."
)
@click.option("--rounds", type=click.IntRange(1), default=200, show_default=True, help="Timed calls of each.")
@click.option(
    "--starts", type=click.IntRange(0), default=5, show_default=True, help="Fresh processes of each; 0 for none."
)
@click.option(
    "--precision",
    type=SHARE,
    default="5%",
    show_default=True,
    help="How far an interval may reach to either side before the machine counts as too noisy to tell.",
)
@click.option("--from-crops", is_flag=True, help="Time normalization too, from uint8 crops, as the runtime does.")
@click.option(
    "--axis", "axes", multiple=True, type=AXIS_SIZE, help="Size of a free axis, e.g. height=480; 320 where left out."
)
@click.option("--plot", type=result_file("plot", ".png", ".jpg"), help="Draw the times into this PNG.")
@json_option("Write all figures (docs/benchmarking.md)")
def bench_command(
    models: tuple[Path, ...],
    runtimes: tuple[str, ...],
    against: Path | None,
    axes: tuple[tuple[str, int], ...],
    plot: Path | None,
    json_target: str | None,
    **settings: Any,  # noqa: ANN401 - the fields of BenchRequest
) -> None:
    """Time each MODEL, an ONNX or LiteRT file, on this machine: they take turns, so that what slows one slows all.

    Gives median, p95, p99 and the ratio to the reference with its 95 % interval; start, memory and size in fresh
    processes; share of the processor's measured peak; and which operators take the time. Exits with status 1 where
    the machine was too noisy to tell.
    """
    from pfld_edge.bench_tables import bench_tables, noise_lines
    from pfld_edge.console import console, note, note_assumed, progress_bar, write_json
    from pfld_edge_convert.benchmark.bench import BenchRequest, open_subjects, run_bench, steps

    request = BenchRequest(**settings)
    subjects = open_subjects([*([] if against is None else [against]), *models], dict(axes), runtimes)
    for subject in subjects:
        note_assumed(subject.name, request.from_crops and subject.contract is None)
        for name, size in subject.filled.items():
            if name not in dict(axes):
                note(f"{subject.name}: {name} is free, taken as {size} (--axis {name}={size} for another)")
    with progress_bar("rounds and starts", steps(subjects, request)) as advance:
        report = run_bench(subjects, request, advance)
    if json_target is not None:
        write_json(json_target, report.to_json())
    if json_target != "-":
        for table in bench_tables(report):
            console().print(table)
    for line in noise_lines(report):
        click.echo(line, err=json_target == "-")
    if plot is not None:
        from pfld_edge.report.charts import bench_chart, write_chart

        write_chart(plot, bench_chart, report)
        click.echo(f"plot -> {plot}", err=True)
    if report.too_noisy:
        raise click.exceptions.Exit(1)
