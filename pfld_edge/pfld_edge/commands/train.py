"""`pfld-edge train` and `pfld-edge import-onnx`: the commands that make a checkpoint."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pfld_edge.options import PATH, RESULT_FOLDER, output_option, strict_option

if TYPE_CHECKING:
    from pfld_edge.console import SkippedFiles
    from pfld_edge_runtime.arrays import Int64Array, Uint8Array
    from pfld_edge_train.config import AugmentConfig, TrainConfig

_CALIBRATION = 256
"""Training faces that --qat calibrates on."""


@click.command("train")
@click.option("--config", "config_path", required=True, type=PATH, help="A TOML file.")
@output_option("Folder of the run.", RESULT_FOLDER)
@click.option("--resume", is_flag=True, help="Go on from OUTPUT/last.pth, where there is one.")
@click.option("--init", type=PATH, help="Checkpoint to start from instead of random weights.")
@click.option(
    "--qat",
    type=PATH,
    metavar="CHECKPOINT",
    help="Train a quantized copy of this checkpoint: writes fp32 and INT8 files in place of checkpoints.",
)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Length of --qat; 10 where left out.")
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
    qat: Path | None,
    minutes: float | None,
    cache: Path | None,
    threads: int | None,
    strict: bool,
) -> None:
    """Train a network as a TOML configuration says.

    Writes into OUTPUT: last.pth to go on from, best.pth, ema.pth (the averaged weights, to convert), log.csv and
    curves.png. Ctrl-C saves the run and ends it; --resume goes on.

    With --qat, the file that `convert CHECKPOINT --int8` makes, calibrated on training faces, learns the landmarks of
    CHECKPOINT on the augmented training faces of the configuration, through its rounding. OUTPUT gets both files. The
    configuration's loss, optimizer and epochs don't count.

    Photographs, shards and pictures of prepared shards that can't be read are skipped and named; the exit status is
    then 2, once the run has ended.
    """
    if minutes is not None and qat is None:
        raise click.UsageError("--minutes needs --qat")
    if qat is not None and (resume or init is not None):
        raise click.UsageError("--qat begins with its CHECKPOINT: leave out --resume and --init")
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
        if qat is not None:
            train_quantized(config, qat, output, minutes or 10.0, cache or output / "cache", skip)
            skip.check()
            return
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


def train_quantized(
    config: "TrainConfig", checkpoint: Path, output: Path, minutes: float, cache: Path, skip: "SkippedFiles"
) -> None:
    """Quantization-aware training: fine-tune the INT8 network of a checkpoint on augmented training faces."""
    from itertools import count

    import numpy as np

    from pfld_edge.commands.convert import opened_checkpoint, show_report
    from pfld_edge.console import progress_bar
    from pfld_edge_convert.calibration import sample_crops
    from pfld_edge_convert.int8_stage import Int8Request
    from pfld_edge_convert.pipeline import convert
    from pfld_edge_train.augment import draw_plan, render_on_cpu
    from pfld_edge_train.batches import epoch_order
    from pfld_edge_train.errors import TrainConfigError
    from pfld_edge_train.face_cache import open_cache

    model, contract = opened_checkpoint(checkpoint)
    faces = open_cache(config, cache, contract, skip)

    def crops(rows: "Int64Array", augment: "AugmentConfig | None", *seed: int) -> "Uint8Array":
        plan = draw_plan(faces, rows, contract, augment, np.random.default_rng([config.seed, *seed]))
        return render_on_cpu(faces.crops, plan, contract.input_size, contract.color_order)

    def batches() -> "Iterator[Uint8Array]":
        for epoch in count():
            order, size = epoch_order(faces, config.seed, epoch), config.batch_size
            for start in range(0, len(order), size):
                yield crops(order[start : start + size], config.augment, epoch, start)

    shown = epoch_order(faces, config.seed, 0)
    if not len(shown):
        raise TrainConfigError("too few faces: not one to train on")
    calibrated = crops(np.unique(shown[:_CALIBRATION]), None)
    source = f"{len(calibrated)} training faces, seed {config.seed}"
    request = Int8Request(
        calibrated, source, allow_slower=True, progress=progress_bar, finetune=minutes, batches=batches()
    )
    report = convert(model, contract, output / f"{checkpoint.stem}.onnx", sample_crops(contract), request)
    show_report(report, contract.input_size, "torch")


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
