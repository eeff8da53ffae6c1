"""Time of the theory's blocks in onnxruntime, as multiples of a full 3x3 convolution's: MACs are not time.

    OMP_NUM_THREADS=1 python benchmarks/blocks.py [--rounds 400]

Each block (64 channels in and out, a 28 x 28 map, inference form, fp32) stands once and nine times behind the same
stem; an eighth of the difference is one block, free of the stem, of the call, and of what onnxruntime lays out anew at
both ends. The files take turns. docs/theory/index.md has the table.
"""

from collections.abc import Callable
from statistics import median

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pfld_edge_convert.benchmark.turns import take_turns
from pfld_edge_convert.export import INPUT_NAME, export_onnx
from pfld_edge_convert.fuse import reparameterize
from pfld_edge_runtime.session import open_session
from pfld_edge_train.blocks import (
    DepthwiseSeparableConv,
    GhostBottleneck,
    GhostModule,
    GhostOneModule,
    InvertedResidual,
    MobileOneBlock,
    conv_block,
)

BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "full 3x3 convolution": lambda: conv_block(64, 64, 3, 1, 1),
    "depthwise separable": lambda: DepthwiseSeparableConv(64, 64),
    "inverted residual, expansion 2": lambda: InvertedResidual(64, 64, 1, 2, residual=True),
    "Ghost module": lambda: GhostModule(64, 64),
    "Ghost bottleneck, 128 hidden": lambda: GhostBottleneck(64, 128, 64, 1),
    "MobileOne block, depthwise 3x3 and 1x1": lambda: nn.Sequential(
        MobileOneBlock(64, 64, 3, groups=64, conv_branches=6), MobileOneBlock(64, 64, 1, conv_branches=6)
    ),
    "GhostOne module": lambda: GhostOneModule(64, 64, conv_branches=6),
}
MORE = 8


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=400, show_default=True)
def main(rounds: int) -> None:
    """Print microseconds of each block, and the ratio to the full convolution."""
    torch.manual_seed(0)
    crop = np.random.default_rng(0).uniform(-1, 1, (1, 3, 112, 112)).astype(np.float32)
    calls = {}
    for name, make in BLOCKS.items():
        for count in (1, 1 + MORE):
            calls[name, count] = _call(make, count, crop)
    times = {key: median(values) for key, values in take_turns(calls, rounds).items()}
    each = {name: (times[name, 1 + MORE] - times[name, 1]) / MORE * 1000 for name in BLOCKS}
    whole = each["full 3x3 convolution"]
    click.echo("| block | microseconds | of the full convolution |\n|---|---|---|")
    for name, value in each.items():
        click.echo(f"| {name} | {value:.0f} | {value / whole:.2f} |")


def _call(make: Callable[[], nn.Module], count: int, crop: NDArray[np.float32]) -> Callable[[], object]:
    network = nn.Sequential(conv_block(3, 64, 3, 4, 1), *(make() for _ in range(count))).eval()
    session = open_session(export_onnx(reparameterize(network), 112).SerializeToString())
    return lambda: session.run(None, {INPUT_NAME: crop})


if __name__ == "__main__":
    main()
