"""`pfld-edge train` and `pfld-edge import-onnx`: the commands that make a checkpoint."""

import os
from pathlib import Path

import click

from pfld_edge.options import PATH, RESULT_FOLDER, output_option, strict_option


@click.command("train")
@click.option("--config", "config_path", required=True, type=PATH, help="A TOML file.")
@output_option("Folder of the run.", RESULT_FOLDER)
@click.option("--resume", is_flag=True, help="Go on from OUTPUT/last.pth, where there is one.")
@click.option("--init", type=PATH, help="Checkpoint to start from instead of random weights.")
@click.option("--cache", type=RESULT_FOLDER, help="Folder of cut faces; OUTPUT/cache where left out.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores where left out.")
@strict_option
@click.pass_context
def train_command(
    ctx: click.Context,
    config_path: Path,
    output: Path,
    resume: bool,
    init: Path | None,
    cache: Path | None,
    threads: int | None,
    strict: bool,
) -> None:
    """Train a network as a TOML configuration says.

    Writes into OUTPUT: last.pth to go on from, best.pth, ema.pth (the averaged weights, to convert), log.csv and
    curves.png. Ctrl-C saves the run and ends it; --resume goes on.

    Photographs, shards and pictures of prepared shards that can't be read are skipped and named; the exit status is
    then 2, once the run has ended.
    """
    from pfld_edge.console import SkippedFiles
    from pfld_edge.training_progress import training_progress
    from pfld_edge_runtime import PfldEdgeError
    from pfld_edge_train.config import load_config
    from pfld_edge_train.errors import OtherProcessError, TrainingInterruptedError
    from pfld_edge_train.fit import train, use_threads
    from pfld_edge_train.processes import joined_processes

    if threads:
        use_threads(threads)
    skip = SkippedFiles(strict=strict)
    try:
        config = load_config(config_path)
        with joined_processes(config.device) as processes, training_progress(quiet=not processes.first) as watcher:
            train(config, output, processes, watcher, resume=resume, init=init, cache=cache, skip=skip)
    except TrainingInterruptedError as error:
        click.echo(str(error), err=True)
        ctx.exit(128 + error.signal)
    except PfldEdgeError as error:
        # Under torchrun every process of a machine meets a wrong configuration, and all learn of the error of one.
        if os.environ.get("RANK" if isinstance(error, OtherProcessError) else "LOCAL_RANK", "0") != "0":
            ctx.exit(2)
        raise
    skip.check()


@click.command("import-onnx")
@click.argument("file", metavar="FILE.onnx", type=PATH)
@output_option("Checkpoint to write (.pth).")
def import_onnx_command(file: Path, output: Path) -> None:
    """Turn a published PFLD, PFLD-GhostNet, PFLD-GhostNet-Slim or PFLD-GhostOne file back into a checkpoint.

    The layers are found by what they compute, not by their names, and the result is checked against the file.
    """
    from pfld_edge_convert.onnx_import import import_onnx
    from pfld_edge_train.checkpoint import save_checkpoint

    checkpoint = import_onnx(file)
    save_checkpoint(output, checkpoint)
    parameters = sum(weight.numel() for weight in checkpoint.weights.values())
    click.echo(
        f"{output}: {checkpoint.model.kind}, {parameters:,} parameters, {checkpoint.model.num_landmarks} landmarks"
    )
