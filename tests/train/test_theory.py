"""Every number in the theory's tables, counted again on our own blocks."""

import math
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pfld_edge_convert.reparameterize import reparameterize
from pfld_edge_train.blocks import GhostModule, InvertedResidual, MobileOneBlock, conv_block
from pfld_edge_train.models import ModelConfig, build_model

THEORY = Path(__file__).parents[2] / "docs/theory"
FULL = 28 * 28 * 64 * (9 * 64)


def table(chapter: str, name: str) -> list[list[str]]:
    """The cells of the table behind a ``<!-- numbers: name -->``, without its head."""
    after = (THEORY / f"{chapter}.md").read_text().partition(f"<!-- numbers: {name} -->\n")[2]
    lines = after.split("\n\n")[0].splitlines()[2:]
    assert lines
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def cost(block: nn.Module, channels: int = 64, size: int = 28) -> tuple[int, int]:
    """Parameters and multiply-accumulates of the inference form."""
    fused, macs = reparameterize(block), [0]

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        places = output.shape[2] * output.shape[3] if output.ndim == 4 else 1
        macs[0] += layer.get_parameter("weight").numel() * places

    for layer in fused.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        fused(torch.zeros(1, channels, size, size))
    return sum(parameter.numel() for parameter in fused.parameters()), macs[0]


def millions(value: float, digits: int = 1) -> str:
    return f"{value / 1e6:.{digits}f} M"


def full(outputs: int = 64) -> nn.Module:
    return conv_block(64, outputs, 3, 1, 1)


# One list of blocks for what is counted here and what is timed there.
SCRIPT = runpy.run_path(str(THEORY.parents[1] / "benchmarks/blocks.py"))
BLOCKS: dict[str, Callable[[], nn.Module]] = SCRIPT["BLOCKS"]


def test_the_yardstick() -> None:
    rows = table("index", "yardstick")
    assert [row[0] for row in rows] == list(BLOCKS)
    # The last column is time, measured by benchmarks/blocks.py: a test doesn't time.
    for name, parameters, macs, share, _ in rows:
        counted = cost(BLOCKS[name]())
        expected = "1" if counted[1] == FULL else f"{counted[1] / FULL:.3f}"
        assert (parameters, macs, share) == (f"{counted[0]:,}", millions(counted[1]), expected)


def test_the_ratio_of_separable_convolutions() -> None:
    for outputs, plain, separable, ratio, formula in table("depthwise-separable", "separable"):
        d = int(outputs)
        _, whole = cost(full(d))
        _, cheap = cost(SCRIPT["separable"](64, d))
        assert (plain, separable) == (millions(whole), millions(cheap))
        assert ratio == formula == f"{cheap / whole:.3f}" == f"{1 / d + 1 / 9:.3f}"


def test_inverted_residuals() -> None:
    for expansion, parameters, macs, share in table("inverted-residuals", "inverted"):
        t = int(expansion)
        counted = cost(InvertedResidual(64, 64, 1, t, residual=True))
        assert counted[1] == 28 * 28 * t * 64 * (64 + 9 + 64)
        assert (parameters, macs) == (f"{counted[0]:,}", millions(counted[1]))
        assert share == f"{100 * 28 * 28 * 9 * t * 64 / counted[1]:.1f} %"


def test_ghost_modules() -> None:
    for inputs, plain, ghost, gain in table("ghost", "ghost"):
        c = int(inputs)
        _, whole = cost(conv_block(c, 64, 1), c)
        _, cheap = cost(GhostModule(c, 64), c)
        digits = 2 if c == 16 else 1
        assert (plain, ghost) == (millions(whole, digits), millions(cheap, digits))
        assert gain == f"{whole / cheap:.2f}" == f"{2 * c / (c + 9):.2f}"


def test_the_branches_of_a_mobileone_block() -> None:
    block = MobileOneBlock(64, 64, 3, groups=64, conv_branches=6)
    trained = sum(parameter.numel() for parameter in block.parameters())
    parameters, macs = cost(block)
    rows = table("reparameterization", "mobileone")
    assert rows[0][1:] == [f"{trained:,}", str(parameters)]
    # Six kernels of nine weights and one of one weight at each place of each channel.
    assert rows[1][1:] == [millions((6 * 9 + 1) * 64 * 28 * 28), millions(macs)]
    assert rows[2][1:] == [str(2 * (6 + 1 + 1)), "2"]


def test_the_worked_example_of_merging() -> None:
    kernels = np.array([(1, 2, 1), (0, 4, 0), (0, 1, 0)])
    merged = np.array([0.5, 0.25, 1]) @ kernels
    assert merged.tolist() == [0.5, 3, 0.5]
    x = np.random.default_rng(0).normal(size=20)
    branches = sum(
        factor * np.convolve(x, kernel[::-1], "same") + offset
        for factor, kernel, offset in zip((0.5, 0.25, 1), kernels, (0.1, 0, -0.3), strict=True)
    )
    np.testing.assert_allclose(branches, np.convolve(x, merged[::-1], "same") - 0.2, atol=1e-12)


@pytest.mark.parametrize("row", table("pfld", "pfld"), ids=lambda row: row[0])
def test_the_networks(row: list[str]) -> None:
    parameters, macs = cost(build_model(ModelConfig(row[0])), 3, 112)
    assert row[1:] == [millions(parameters, 2), millions(macs)]


def test_signal_to_noise_of_small_channels() -> None:
    for share, steps, bits, ratio in table("quantization", "sqnr"):
        part = float(np.divide(*map(float, share.split("/")))) if "/" in share else float(share)
        step = 1 / 255
        decibels = 10 * math.log10(12 * (part**2 / 12) / step**2)
        assert (bits, ratio) == (f"{math.log2(255 * part):.1f}", f"{decibels:.1f} dB")
        assert float(steps) == pytest.approx(255 * part, abs=1)


def test_the_chapters_hold_together() -> None:
    for page in THEORY.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
