"""`pfld-edge train`: makes a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import click

__all__ = ["train_command"]


@click.command("train")
@click.option("--config", "config_path", required=True, type=click.Path(path_type=Path), help="A TOML file.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from OUT/last.pth.")
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    help="Checkpoint to start from instead of random weights, of other landmarks even.",
)
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of cut faces; OUT/cache where left out.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores where left out.")
def train_command(
    config_path: Path, out: Path, resume: bool, init: Path | None, cache: Path | None, threads: int | None
) -> None:
    """Train a network as a TOML configuration says; writes last.pth, best.pth and log.csv into OUT."""
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pfld_edge.console import console, note
    from pfld_edge_train.config import load_config
    from pfld_edge_train.errors import TrainConfigError
    from pfld_edge_train.fit import EpochResult, fit, new_run, resumed_run

    if threads:
        torch.set_num_threads(threads)
    config = load_config(config_path)
    last = out / "last.pth"
    if last.exists() and not resume:
        raise TrainConfigError(f"{out} holds a run already: give --resume to go on, or another --out")
    resumes = resume and last.exists()
    if config.finetune.freeze and init is None and not resumes:
        raise TrainConfigError(
            f"{config_path}: [finetune] freezes layers, which without --init are random: give --init"
        )
    state = resumed_run(config, last) if resumes else new_run(config, init)
    if state.origin:
        note(state.origin)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as progress:
        task = progress.add_task("preparing", total=None)

        def epoch_progress(epoch: int, steps: int) -> Callable[[float], None]:
            name = f"epoch {epoch + 1}/{config.epochs}"
            progress.reset(task, total=steps, description=name)

            def advance(loss: float) -> None:
                progress.update(task, advance=1, description=f"{name} loss {loss:.2f}")

            return advance

        def report(result: EpochResult) -> None:
            figures = f"loss {result.loss:.3f}, validation NME {result.nme:.5f}{' (best)' if result.best else ''}"
            progress.console.print(f"epoch {result.epoch + 1}/{config.epochs}: {figures}")

        fit(state, out, cache or out / "cache", epoch_progress, report)
