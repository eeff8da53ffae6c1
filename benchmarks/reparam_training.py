"""Training speed of MobileOne blocks: branches as they stand, merged in every step, and one branch alone.

    OMP_NUM_THREADS=1 python benchmarks/reparam_training.py [--model pfld-ghostone] [--branches 6] [--batch 32]

Whole steps (forward, loss, backward), the forms taking turns in one process; the fastest of all rounds counts, since
whatever else the machine does only slows a step down. The difference in what they compute stands beside it.
"""

import copy
import sys
import time

import click
import torch
from torch import Tensor, nn

from pfld_edge_train.blocks import MobileOneBlock
from pfld_edge_train.models import MODEL_KINDS, ModelConfig, build_model


@click.command()
@click.option("--model", type=click.Choice(list(MODEL_KINDS)), default="pfld-ghostone", show_default=True)
@click.option("--branches", type=click.IntRange(1), default=6, show_default=True, help="k x k branches of a block.")
@click.option("--batch", type=click.IntRange(2), default=32, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=12, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--bf16", is_flag=True, help="Under autocast to bfloat16.")
def main(model: str, branches: int, batch: int, rounds: int, threads: int, bf16: bool) -> None:
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
            if isinstance(block, MobileOneBlock):
                block.training_form = name if name in ("branches", "merged") else "auto"  # type: ignore[assignment]
    seconds = dict.fromkeys(networks, float("inf"))
    outputs = {}
    for _ in range(rounds):
        for name, network in networks.items():
            start = time.perf_counter()
            outputs[name] = _step(network, faces, truth, bf16=bf16)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    click.echo(f"{model}, {branches} branches, batch {batch}, {threads} thread(s), {'bfloat16' if bf16 else 'float32'}")
    click.echo("| form | images a second | x branches | largest difference of a landmark |\n|---|---|---|---|")
    for name, value in seconds.items():
        off = "" if name == "one branch" else f"{float((outputs[name] - outputs['branches']).abs().max()):.1e}"
        click.echo(f"| {name} | {batch / value:.1f} | {seconds['branches'] / value:.2f} | {off} |")


def _step(network: nn.Module, faces: Tensor, truth: Tensor, *, bf16: bool) -> Tensor:
    network.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        found: Tensor = network(faces)
    (found.float() - truth).abs().mean().backward()  # type: ignore[no-untyped-call]
    return found.detach().float()


if __name__ == "__main__":
    sys.exit(main())
