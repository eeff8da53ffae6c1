"""`pfld-edge import-onnx`: a published ONNX file becomes a checkpoint."""

from pathlib import Path

import click

from pfld_edge.options import PATH, output_option


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
