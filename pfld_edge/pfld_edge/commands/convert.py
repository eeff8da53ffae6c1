"""`pfld-edge convert`: from a checkpoint to files for devices."""

from pathlib import Path

import click

__all__ = ["convert_command"]


@click.command("convert")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The ONNX file; CHECKPOINT's name where left out."
)
@click.option("--int8", is_flag=True, help="Also write OUTPUT.int8.onnx, statically quantized.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Faces for --int8: a WFLW folder, a CSV of points, or a folder of photographs (one face each, or with a "
    "boxes.csv); the two bundled portraits, much varied, where left out.",
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of a calibration CSV's images.")
@click.option("--faces", type=click.IntRange(min=1), default=256, show_default=True, help="Most calibration faces.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the choice of those faces.")
@click.option("--reduce-range", is_flag=True, help="7-bit weights, for x86 processors without VNNI.")
def convert_command(
    checkpoint: Path,
    output: Path | None,
    int8: bool,
    calibration: Path | None,
    images: Path | None,
    faces: int,
    seed: int,
    reduce_range: bool,
) -> None:
    """Turn CHECKPOINT into a small ONNX file that carries its contract, and with --int8 into a second one.

    Every step is proven on faces; the table gives the largest difference to the checkpoint.
    """
    if calibration is not None and not int8:
        raise click.UsageError("--calibration needs --int8")
    if checkpoint.suffix.lower() == ".onnx":
        raise click.UsageError(f"{checkpoint} is an ONNX file; `pfld-edge import-onnx` makes a checkpoint of it")
    target = checkpoint.with_suffix(".onnx") if output is None else output
    if target.suffix.lower() != ".onnx":
        raise click.UsageError(f"the output must end in .onnx, not {target.name}")

    from pfld_edge.console import console, note, note_assumed
    from pfld_edge.conversion_report import conversion_table
    from pfld_edge_convert.calibration_batches import calibration_batches, proof_samples
    from pfld_edge_convert.checkpoint_contract import contract_of
    from pfld_edge_convert.pipeline import Calibration, convert
    from pfld_edge_convert.quantize import QuantizationSettings
    from pfld_edge_train.checkpoint import load_model

    model, loaded = load_model(checkpoint)
    contract = contract_of(loaded)
    note_assumed(checkpoint.name, not loaded.contract)
    chosen = None
    if int8:
        batches, source = calibration_batches(calibration, contract, limit=faces, seed=seed, images=images)
        chosen = Calibration(batches, source, QuantizationSettings(reduce_range=reduce_range))
        if calibration is None:
            note("no --calibration: INT8 ranges come from two bundled portraits; your own faces make them better")
    report = convert(model, contract, target, proof_samples(contract), chosen)
    for done in report.passes:
        if done.modified:
            note(f"{done.name}: {done.detail} (output changed by {done.max_difference:.1g})")
    console().print(conversion_table(report, contract.input_size))
