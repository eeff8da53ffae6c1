"""Robustness as `verify` measures, prints and draws it, and the HTML report."""

import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from rich.table import Table

from pfld_edge.console import console, face_progress
from pfld_edge.html_report import ReportContext, report_page
from pfld_edge.output_file import write_atomically, write_picture
from pfld_edge.robustness_plot import draw_robustness
from pfld_edge_calib import Face
from pfld_edge_calib.proof import ProofModel, Verification
from pfld_edge_calib.robustness import Robustness, measure_robustness
from pfld_edge_convert.benchmark.environment import environment
from pfld_edge_convert.onnx_file import load_onnx
from pfld_edge_convert.quantization.report import QuantizationReport, read_report

__all__ = ["damaged", "write_report"]


def damaged(models: Sequence[ProofModel], faces: Sequence[Face], plot: Path | None, *, stderr: bool) -> Robustness:
    """Measure networks under damage, print the table, draw the plot.

    The fused form of a checkpoint is the checkpoint; it is left out.

    Args:
        models: Those of the verification.
        faces: Likewise.
        plot: A PNG; none where None.
        stderr: Print beside the results, not among them.

    Raises:
        OSError: The plot can't be written.
    """
    chosen = [model for model in models if model.kind != "fused torch"]
    with face_progress("damaged faces", len(faces)) as advance:
        found = measure_robustness(chosen, faces, advance)
    console(stderr=stderr).print(_table(found))
    if plot is not None:
        write_picture(plot, draw_robustness(found))
    return found


def write_report(
    found: Verification, path: Path, robustness: Robustness | None = None, title: str = "Verification"
) -> None:
    """Write the HTML report.

    Raises:
        OSError: The file can't be written.
    """
    machine = environment((), None)
    versions = f"Python {machine.python}, onnxruntime {onnxruntime.__version__}, numpy {np.__version__}"
    context = ReportContext(
        title=f"{title}: {Path(found.models[-1].path).name}",
        command="pfld-edge " + shlex.join(sys.argv[1:]),
        machine={
            "versions": _own_version() + versions,
            "processor": f"{machine.processor}, {machine.cores} cores",
            "system": machine.system,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        },
        quantization=_quantization(found),
        robustness=robustness,
    )
    write_atomically(path, report_page(found, context).encode())


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"pfld-edge {version('pfld-edge')}, "
    except PackageNotFoundError:
        return ""


def _quantization(found: Verification) -> dict[str, QuantizationReport]:
    reports = {}
    for model in found.models:
        if model.kind == "onnx int8":
            graph: onnx.ModelProto = load_onnx(Path(model.path))
            report = read_report(graph)
            if report is not None:
                reports[model.name] = report
    return reports


def _table(found: Robustness) -> Table:
    table = Table(title=f"NME under damage, {found.faces} faces (undamaged first)")
    table.add_column("damage")
    table.add_column("model")
    table.add_column("none", justify="right")
    most = max(len(curve.strengths) for curve in found.curves)
    for step in range(most):
        table.add_column("mild" if step == 0 else "strong" if step == most - 1 else "", justify="right")
    for curve in found.curves:
        table.add_row(f"{curve.name}, {curve.unit}", "", "", *(f"{value:g}" for value in curve.strengths), style="bold")
        for model, clean, row in zip(found.models, found.clean.tolist(), curve.nmes.tolist(), strict=True):
            table.add_row("", model, f"{clean:.4f}", *(f"{value:.4f}" for value in row))
        table.add_section()
    return table
