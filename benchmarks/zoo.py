"""Converts networks of timm and torchvision, exported by both exporters of torch, and says what came of each.

`pip install timm torchvision` first; the weights are random. Each file goes through `convert --int8 --end-to-end`,
`inspect`, `contract`, `bench`, `predict`, `verify` and `contract --find` in this process; a traceback is printed and
counts as a failure.
"""

import contextlib
import io
import itertools
import json
import logging
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from harness import print_table
from pfld_edge.cli import run
from pfld_edge_calib import portraits
from pfld_edge_convert.model_file import load_onnx
from pfld_edge_convert.quantization.mixed_precision import fusion_coverage, read_report

POINTS, SIDE = 98, 112
OPTIONS = f"--color rgb --mean 127.5 --scale 127.5 --crop-margin 1.2 --landmarks {POINTS} --output-space 0..1".split()
QUICK = ["--int8", "--allow-slower", "--end-to-end", "--faces", "16", "--ranges", "minmax"]
BENCH = ["--rounds", "2", "--starts", "0", "--precision", "100%"]
EXPORTERS = ("legacy", "dynamo")
HEAT_MAPS = {"resnet18": 6, "regnetx_002": 3}
"""Networks of which so many blocks make maps of stride 8, which a soft-argmax reads."""

NETWORKS = (
    *("mobilenetv3_small_050", "mobilenetv2_050", "efficientnet_lite0", "ghostnet_050", "resnet18", "mobileone_s0"),
    *("repvgg_a0", "shufflenet_v2_x0_5", "regnetx_002", "regnety_002", "mixnet_s", "squeezenet1_1"),
    *("convnext_atto", "vit_tiny_patch16_224", "mobilevit_xxs"),
)


def network(name: str, points: int = POINTS) -> nn.Module:
    """A network with random weights, whose normalizations have the statistics of noise."""
    # torchvision's wheels for CUDA register no operators with a torch for CPUs, but name these two on import.
    with contextlib.suppress(RuntimeError):
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")
    import timm
    import torchvision

    torch.manual_seed(0)
    model: nn.Module
    if name in HEAT_MAPS:
        blocks = list(timm.create_model(name).children())[: HEAT_MAPS[name]]
        model = nn.Sequential(*blocks, nn.LazyConv2d(points, 1))
    elif hasattr(torchvision.models, name) and name not in timm.list_models():
        model = getattr(torchvision.models, name)(num_classes=2 * points)
    else:
        smaller: dict[str, Any] = {"img_size": SIDE, "depth": 2} if name.startswith("vit") else {}
        model = timm.create_model(name, num_classes=2 * points, **smaller)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean of all batches
    with torch.no_grad():
        for _ in range(8):
            model.train()(torch.randn(8, 3, SIDE, SIDE))
    return model.eval()


def export(model: nn.Module, path: Path, *, dynamo: bool) -> None:
    """Export with a free batch by tracing, or for one face by torch.export."""
    image = torch.zeros(1 if dynamo else 2, 3, SIDE, SIDE)
    told = {"verbose": False} if dynamo else {"input_names": ["image"], "dynamic_axes": {"image": {0: "batch"}}}
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (image,), path, dynamo=dynamo, **told)


def outcome(path: Path) -> list[str]:
    """Run every command: ``INT8``, ``refused`` or ``fp32 only``; layers in integers; what is in float."""
    output, small = path.with_suffix(".edge.onnx"), path.with_suffix(".edge.int8.onnx")
    refusal = run_quietly("convert", path, *OPTIONS, *QUICK, "-o", output)
    files = [path, *([] if refusal else [output, small])]
    for command, file in itertools.product(("inspect", "contract", "bench"), files):
        run_quietly(command, file, *(BENCH if command == "bench" else ()))
    photo = str(portraits()[0].image)
    for file in files:
        run_quietly("predict", photo, "--model", file, "-o", path.with_suffix(".png"))
    if refusal:
        return ["refused", "", refusal]
    run_quietly("inspect", path, output)
    run_quietly("verify", "--reference", output, small, output.with_suffix(".e2e.onnx"))
    model = load_onnx(small)
    coverage, report = fusion_coverage(model), read_report(model)
    kinds = Counter(line.partition(" ")[0] for line in report.float_operators) if report is not None else Counter()
    layers = f"{len(coverage.integer)} of {len(coverage.integer) + len(coverage.floating)}"
    floats = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
    return ["INT8" if coverage.integer else "fp32 only", layers, floats + (", ..." if len(kinds) > 4 else "")]


def search(path: Path) -> str:
    """Processor seconds of ``contract --find``; a network with random weights must not be sure of anything."""
    start, target = time.process_time(), path.with_suffix(".found.json")
    if refusal := run_quietly("contract", path, "--find", "--json", target):
        return refusal
    taken, found = time.process_time() - start, json.loads(target.read_text(encoding="utf-8"))
    return f"{taken:.1f}" + (", a wrong answer" if any(field["sure"] for field in found["findings"]) else "")


def run_quietly(*command: str | Path) -> str:
    """Run a command of pfld-edge; its last line where it fails."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = run([str(word) for word in command])
    return printed.getvalue().strip().splitlines()[-1] if status else ""


@click.command()
@click.argument("names", nargs=-1)
@click.option("--folder", type=click.Path(path_type=Path), help="Keep files and rows here; rows that are here stay.")
def zoo(names: tuple[str, ...], folder: Path | None) -> None:
    """Convert NAMES, or all networks."""
    rows: dict[str, list[str]] = {}
    more: dict[str, list[str]] = {}
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = (folder or Path(temporary)) / "rows.json"
        if known.exists():
            rows = json.loads(known.read_text(encoding="utf-8"))
        for name, exporter in itertools.product(names or NETWORKS, EXPORTERS):
            path = known.with_name(f"{name}.{exporter}.onnx")
            if path.stem in rows:
                continue
            try:
                if not path.exists():
                    export(network(name), path, dynamo=exporter == "dynamo")
                found = [*outcome(path), search(path)]
            except Exception as error:  # noqa: BLE001 - what the benchmark looks for
                traceback.print_exc()
                found = ["TRACEBACK", "", repr(error), ""]
            rows[path.stem] = [name, exporter, *found]
            click.echo(" | ".join(rows[path.stem]))
            known.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    table: dict[str, list[str]] = {}
    for name, _, result, layers, floats, seconds in rows.values():
        table.setdefault(name, [name]).append(f"{result} {layers}".strip())
        more.setdefault(name, [floats]).append(seconds)
    columns = "network", *EXPORTERS, "in float", *(f"find, {exporter}, s" for exporter in EXPORTERS)
    print_table(columns, [[*row, *more[name]] for name, row in table.items()])
    click.echo(f"{dict(Counter(row[2] for row in rows.values()))} of {len(rows)}")


if __name__ == "__main__":
    zoo()
