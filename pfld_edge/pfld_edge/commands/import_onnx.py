"""`pfld-edge import-onnx`: a published ONNX file becomes a checkpoint."""

from pathlib import Path

import click

__all__ = ["import_onnx_command"]


@click.command("import-onnx")
@click.argument("file", metavar="FILE.onnx", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Checkpoint to write (.pth).")
def import_onnx_command(file: Path, out: Path) -> None:
    """Turn a published PFLD, PFLD-GhostNet, PFLD-GhostNet-Slim or PFLD-GhostOne file back into a checkpoint.

    The layers are found by what they compute, not by their names, and the result is checked against the file.
    """
    from pfld_edge_convert.onnx_import import import_onnx
    from pfld_edge_train.checkpoint import save_checkpoint

    checkpoint = import_onnx(file)
    save_checkpoint(out, checkpoint)
    parameters = sum(weight.numel() for weight in checkpoint.weights.values())
    click.echo(f"{out}: {checkpoint.model.kind}, {parameters:,} parameters, {checkpoint.model.num_landmarks} landmarks")
