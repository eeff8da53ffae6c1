"""What benchmarks share: the folder of shared data, the option --model, Markdown tables, overlaps, timing in turns."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import click
import numpy as np
from numpy.typing import NDArray

from pfld_edge_convert.benchmark.timing import take_turns

Boxes = NDArray[np.float64]

SAME_FACE = 0.3
"""Least intersection over union at which a detection counts as the labelled face."""

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


def overlaps(boxes: NDArray[np.floating], others: NDArray[np.floating]) -> Boxes:
    """Intersection over union of ``(..., 4)`` boxes, row by row, in float64."""
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:4], others[..., 2:4])
    shared = np.maximum(high - low, 0).prod(axis=-1)
    areas = [(some[..., 2:4] - some[..., :2]).prod(axis=-1) for some in (boxes, others)]
    result: Boxes = np.asarray(shared / (areas[0] + areas[1] - shared), np.float64)
    return result


def medians(
    calls: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.thread_time
) -> dict[str, float]:
    """Time calls in turn; median milliseconds of each."""
    return {name: median(found.wall) for name, found in take_turns(calls, rounds, clock=clock).items()}
