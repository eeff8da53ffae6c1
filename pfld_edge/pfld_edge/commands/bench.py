"""`pfld-edge bench`: how fast files are, against each other, and how far that can be trusted."""

from pathlib import Path

import click

from pfld_edge.axis_size import AxisSize
from pfld_edge.number_list import NumberList
from pfld_edge.output_suffix import check_suffix
from pfld_edge.share import Share

__all__ = ["bench_command"]


@click.command("bench")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="The file that ratios are to; else the first MODEL.")
@click.option("--threads", type=NumberList(), default="1", show_default=True, help="Numbers of threads, e.g. 1,2.")
@click.option("--batch", type=NumberList(), default="1", show_default=True, help="Numbers of faces a call, e.g. 1,8.")
@click.option("--rounds", type=click.IntRange(1), default=200, show_default=True, help="Timed calls of each.")
@click.option(
    "--starts", type=click.IntRange(0), default=5, show_default=True, help="Fresh processes of each; 0 for none."
)
@click.option(
    "--precision",
    type=Share(),
    default="5%",
    show_default=True,
    help="How far an interval may reach to either side before the machine counts as too noisy to tell.",
)
@click.option("--from-crops", is_flag=True, help="Time normalization too, from uint8 crops, as the runtime does.")
@click.option(
    "--axis", "axes", multiple=True, type=AxisSize(), help="Size of a free axis, e.g. height=480; 320 where left out."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the times into this PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/benchmarking.md) instead of tables.")
def bench_command(
    models: tuple[Path, ...],
    against: Path | None,
    threads: tuple[int, ...],
    batch: tuple[int, ...],
    rounds: int,
    starts: int,
    precision: float,
    from_crops: bool,
    axes: tuple[tuple[str, int], ...],
    plot: Path | None,
    as_json: bool,
) -> None:
    """Time each MODEL, an ONNX file, on this machine: they take turns, so that what slows one slows all.

    Gives median, p95, p99 and the ratio to the reference with its 95 % interval; start, memory and size in fresh
    processes; share of the processor's measured peak; and which operators take the time. Exits with status 1 where
    the machine was too noisy to tell.
    """
    from pfld_edge.bench_plot import draw_timings
    from pfld_edge.bench_report import bench_tables, noise_lines
    from pfld_edge.console import console, face_progress, note, note_assumed
    from pfld_edge.output_file import write_picture
    from pfld_edge_convert.benchmark.bench import BenchRequest, open_subjects, run_bench, steps

    if plot is not None:
        check_suffix(plot, "plot", ".png", ".jpg")
    subjects = open_subjects([*([] if against is None else [against]), *models], dict(axes))
    for subject in subjects:
        note_assumed(subject.name, from_crops and subject.contract is None)
        for name, size in subject.filled.items():
            if name not in dict(axes):
                note(f"{subject.name}: {name} is free, taken as {size} (--axis {name}={size} for another)")
    request = BenchRequest(threads, batch, rounds, starts, precision, from_crops)
    with face_progress("rounds and starts", steps(subjects, request)) as advance:
        report = run_bench(subjects, request, advance)
    if as_json:
        click.echo(report.to_json())
    else:
        for table in bench_tables(report):
            console().print(table)
    for line in noise_lines(report):
        click.echo(line, err=as_json)
    if plot is not None:
        write_picture(plot, draw_timings(report))
        click.echo(f"plot -> {plot}", err=True)
    if report.too_noisy:
        raise click.exceptions.Exit(1)
