"""What benchmarks share: the folder of shared data, the option --model, Markdown tables, timing in turns."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import click

from pfld_edge_convert.benchmark.timing import take_turns

model_option = click.option(
    "--model", type=click.Path(path_type=Path), help="An ONNX file with its contract; the bundled one without."
)


def shared_folder() -> Path:
    """Folder of the shared data sets and models.

    Raises:
        click.UsageError: The environment variable PFLD_EDGE_SHARED is not set.
    """
    if not os.environ.get("PFLD_EDGE_SHARED"):
        raise click.UsageError("set PFLD_EDGE_SHARED to the folder that holds data/WFLW and models/")
    return Path(os.environ["PFLD_EDGE_SHARED"])


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table after an empty line, each row as soon as it is known."""
    click.echo(f"\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for row in rows:
        click.echo(f"| {' | '.join(row)} |")


def medians(
    calls: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.thread_time
) -> dict[str, float]:
    """Time calls in turn; median milliseconds of each."""
    return {name: median(found.wall) for name, found in take_turns(calls, rounds, clock=clock).items()}
