"""Where a command's work is done: the options that say so, and what they mean."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pfld_edge_calib.sources import Runner

__all__ = ["ray_option", "resume_option", "runner", "workers_option"]

Command = Callable[..., Any]


def workers_option(command: Command) -> Command:
    """Add ``--workers``."""
    return click.option(
        "--workers", type=click.IntRange(1), help="Processes; one for each core if left out, none for a small set."
    )(command)


def resume_option(command: Command) -> Command:
    """Add ``--resume``."""
    return click.option(
        "--resume",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Keep results here as they come; a run that was stopped goes on with the same command.",
    )(command)


def ray_option(command: Command) -> Command:
    """Add ``--ray``, with or without an address."""
    return click.option(
        "--ray",
        is_flag=False,
        flag_value="",
        metavar="[ADDRESS]",
        help="Run on a Ray cluster (write --ray=ADDRESS), or on one of this machine's cores; needs pfld-edge[ray].",
    )(command)


def runner(workers: int | None, ray: str | None, tasks: int) -> "Runner":
    """Say where tasks are run.

    Args:
        workers: Processes; as many as there are cores where None.
        ray: Address of a Ray cluster, empty for a new one; None for processes of this machine.
        tasks: How many there are: more processes would be idle.
    """
    if ray is not None:
        from pfld_edge_calib.sources.ray_runner import run_on_ray

        return run_on_ray(ray or None, workers)
    from pfld_edge_calib.process_pool import usable_cores
    from pfld_edge_calib.sources import run_locally

    return run_locally(max(1, min(workers or usable_cores(), tasks)))
