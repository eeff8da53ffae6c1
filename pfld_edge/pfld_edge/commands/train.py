"""`pfld-edge train`: makes a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import click

__all__ = ["train_command"]


@click.command("train")
@click.option("--config", "config_path", required=True, type=click.Path(path_type=Path), help="A TOML file.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from OUT/last.pth.")
@click.option("--init", type=click.Path(path_type=Path), help="Checkpoint to start from instead of random weights.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of cut faces; OUT/cache where left out.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores where left out.")
def train_command(
    config_path: Path, out: Path, resume: bool, init: Path | None, cache: Path | None, threads: int | None
) -> None:
    """Train a network as a TOML configuration says.

    Writes into OUT: last.pth to go on from, best.pth, ema.pth (the averaged weights, to convert), log.csv, curves.png.
    """
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pfld_edge.console import console
    from pfld_edge_train.config import load_config
    from pfld_edge_train.processes import joined_processes
    from pfld_edge_train.run_log import EpochResult
    from pfld_edge_train.training import train

    if threads:
        torch.set_num_threads(threads)
    config = load_config(config_path)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as progress, joined_processes(config.device) as processes:
        task = progress.add_task("preparing", total=None)

        def epoch_progress(epoch: int, steps: int, done: int) -> Callable[[float], None]:
            name = f"epoch {epoch + 1}/{config.epochs}"
            progress.reset(task, total=steps, completed=done, description=name)

            def advance(loss: float) -> None:
                progress.update(task, advance=1, description=f"{name} loss {loss:.2f}")

            return advance

        def report(result: EpochResult) -> None:
            figures = f"loss {result.loss:.3f}, validation NME {result.nme:.5f}{' (best)' if result.best else ''}"
            speed = f"{result.images_per_second:.0f} images/s"
            progress.console.print(f"epoch {result.epoch + 1}/{config.epochs}: {figures}, {speed}")

        train(config, out, processes, resume, init, cache, epoch_progress, report)
