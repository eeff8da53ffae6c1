"""Times building blocks: at inference in onnxruntime, and MobileOne's forms in training.

    OMP_NUM_THREADS=1 python benchmarks/blocks.py inference [--rounds 400]
    OMP_NUM_THREADS=1 python benchmarks/blocks.py training [--model pfld-ghostone] [--branches 6] [--batch 32]

`inference`: each block (64 channels in and out, a 28 x 28 map, inference form, fp32) stands once and nine times behind
the same stem; an eighth of the difference is one block, without the stem, the call, and the layout changes at both
ends. docs/theory/index.md has the table. `training`: whole steps (forward, loss, backward) with branches as they stand,
merged in every step, and with one branch alone; the fastest of all rounds counts, since whatever else the machine does
only slows a step down. docs/reparameterized-training.md has the table.
"""

import copy
import time
from collections.abc import Callable

import click
import numpy as np
import torch
from torch import Tensor, nn

from harness import medians, print_table
from pfld_edge_convert.export import INPUT_NAME, export_onnx
from pfld_edge_convert.reparameterize import reparameterize
from pfld_edge_runtime.arrays import Float32Array
from pfld_edge_runtime.session import open_session
from pfld_edge_train import blocks
from pfld_edge_train.models import MODEL_KINDS, ModelConfig, build_model


def separable(inputs: int, outputs: int) -> nn.Module:
    """A depthwise 3x3 and a 1x1 convolution (Howard et al., "MobileNets", arXiv 1704.04861, section 3.1)."""
    return nn.Sequential(
        blocks.conv_block(inputs, inputs, 3, 1, 1, groups=inputs), blocks.conv_block(inputs, outputs, 1)
    )


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "full 3x3 convolution": lambda: blocks.conv_block(64, 64, 3, 1, 1),
    "depthwise separable": lambda: separable(64, 64),
    "inverted residual, expansion 2": lambda: blocks.InvertedResidual(64, 64, 1, 2, residual=True),
    "Ghost module": lambda: blocks.GhostModule(64, 64),
    "Ghost bottleneck, 128 hidden": lambda: blocks.GhostBottleneck(64, 128, 64, 1),
    "MobileOne block, depthwise 3x3 and 1x1": lambda: nn.Sequential(
        blocks.MobileOneBlock(64, 64, 3, groups=64, conv_branches=6), blocks.MobileOneBlock(64, 64, 1, conv_branches=6)
    ),
    "GhostOne module": lambda: blocks.GhostOneModule(64, 64, conv_branches=6),
}
MORE = 8


@click.group()
def main() -> None:
    """Time building blocks."""


@main.command()
@click.option("--rounds", type=click.IntRange(1), default=400, show_default=True)
def inference(rounds: int) -> None:
    """Print microseconds of each block, and the ratio to the full convolution."""
    torch.manual_seed(0)
    crop = np.random.default_rng(0).uniform(-1, 1, (1, 3, 112, 112)).astype(np.float32)
    calls = {}
    for name, make in BLOCKS.items():
        for count in (1, 1 + MORE):
            calls[f"{name} x {count}"] = _call(make, count, crop)
    times = medians(calls, rounds, time.perf_counter)
    each = {name: (times[f"{name} x {1 + MORE}"] - times[f"{name} x 1"]) / MORE * 1000 for name in BLOCKS}
    whole = each["full 3x3 convolution"]
    rows = [[name, f"{value:.0f}", f"{value / whole:.2f}"] for name, value in each.items()]
    print_table(["block", "microseconds", "of the full convolution"], rows)


def _call(make: Callable[[], nn.Module], count: int, crop: Float32Array) -> Callable[[], object]:
    network = nn.Sequential(blocks.conv_block(3, 64, 3, 4, 1), *(make() for _ in range(count))).eval()
    session = open_session(export_onnx(reparameterize(network), 112).SerializeToString())
    return lambda: session.run(None, {INPUT_NAME: crop})


@main.command()
@click.option("--model", type=click.Choice(list(MODEL_KINDS)), default="pfld-ghostone", show_default=True)
@click.option("--branches", type=click.IntRange(1), default=6, show_default=True, help="k x k branches of a block.")
@click.option("--batch", type=click.IntRange(2), default=32, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=12, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--bf16", is_flag=True, help="Under autocast to bfloat16.")
def training(model: str, branches: int, batch: int, rounds: int, threads: int, bf16: bool) -> None:
    """Print a table of images a second."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    faces = torch.randn(batch, 3, 112, 112).contiguous(memory_format=torch.channels_last)
    truth = torch.rand(batch, 196)
    plain = build_model(ModelConfig(model, conv_branches=branches)).train().to(memory_format=torch.channels_last)
    alone = build_model(ModelConfig(model, conv_branches=1)).train().to(memory_format=torch.channels_last)
    networks = {"branches": plain, "merged": copy.deepcopy(plain), "auto": copy.deepcopy(plain), "one branch": alone}
    for name, network in networks.items():
        for block in network.modules():
            if isinstance(block, blocks.MobileOneBlock):
                block.training_form = name if name in ("branches", "merged") else "auto"  # type: ignore[assignment]
    seconds = dict.fromkeys(networks, float("inf"))
    outputs = {}
    for _ in range(rounds):
        for name, network in networks.items():
            start = time.perf_counter()
            outputs[name] = _step(network, faces, truth, bf16=bf16)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    click.echo(f"{model}, {branches} branches, batch {batch}, {threads} thread(s), {'bfloat16' if bf16 else 'float32'}")
    rows = []
    for name, value in seconds.items():
        off = "" if name == "one branch" else f"{float((outputs[name] - outputs['branches']).abs().max()):.1e}"
        rows.append([name, f"{batch / value:.1f}", f"{seconds['branches'] / value:.2f}", off])
    print_table(["form", "images a second", "x branches", "largest difference of a landmark"], rows)


def _step(network: nn.Module, faces: Tensor, truth: Tensor, *, bf16: bool) -> Tensor:
    network.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        found: Tensor = network(faces)
    (found.float() - truth).abs().mean().backward()  # type: ignore[no-untyped-call]
    return found.detach().float()


if __name__ == "__main__":
    main()
