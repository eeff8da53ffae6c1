"""Blocks that merge their branches in every step are blocks that don't: outputs, gradients, statistics."""

import copy
import socket
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pfld_edge_train.blocks import MobileOneBlock
from pfld_edge_train.blocks.merged_branches import merge_pays
from pfld_edge_train.blocks.patch_moments import PatchGeometry
from pfld_edge_train.models import ModelConfig, build_model


@dataclass(frozen=True)
class Kind:
    """A block of the networks."""

    channels: tuple[int, int]
    kernel: int
    stride: int = 1
    depthwise: bool = False
    branches: int = 3
    scale: bool = False
    linear: bool = False

    def build(self, seed: int = 0) -> MobileOneBlock:
        torch.manual_seed(seed)
        block = MobileOneBlock(
            *self.channels,
            self.kernel,
            self.stride,
            groups=self.channels[0] if self.depthwise else 1,
            conv_branches=self.branches,
            pointwise_scale=self.scale,
            linear=self.linear,
        )
        for norm in block.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
                norm.running_mean = torch.randn(norm.num_features)
        return block


KINDS = {
    "stem": Kind((3, 8), 3, 2),
    "dense": Kind((6, 6), 3),
    "dense, stride 2": Kind((6, 4), 3, 2),
    "depthwise": Kind((8, 8), 3, depthwise=True),
    "depthwise, stride 2": Kind((8, 8), 3, 2, depthwise=True),
    "depthwise 5x5": Kind((4, 4), 5, depthwise=True),
    "depthwise 1x1": Kind((4, 4), 1, depthwise=True, scale=True),
    "two outputs a group": Kind((4, 8), 3, depthwise=True, branches=2),
    "pointwise": Kind((6, 10), 1),
    "pointwise, wide": Kind((100, 12), 1, branches=2),
    "pointwise with a scale, skip": Kind((6, 6), 1, scale=True),
    "pointwise, linear, stride 2": Kind((3, 6), 1, 2, linear=True, scale=True),
    "one branch and its sides": Kind((8, 8), 3, depthwise=True, branches=1),
}

NAMES = [pytest.param(kind, id=name) for name, kind in KINDS.items()]


def trained(block: nn.Module, x: Tensor, form: str) -> dict[str, Tensor]:
    """Output, all gradients and all buffers of a step, by name."""
    block = copy.deepcopy(block).train()
    for module in block.modules():
        if isinstance(module, MobileOneBlock):
            module.training_form = form  # type: ignore[assignment]
    x = x.detach().clone().requires_grad_()
    out = block(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weights).sum().backward()
    assert x.grad is not None
    found = {"output": out.detach(), "input gradient": x.grad}
    found |= {f"{name} gradient": value.grad for name, value in block.named_parameters() if value.grad is not None}
    return found | {name: value.clone() for name, value in block.named_buffers()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """Within a share of each tensor's largest value."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        allowed = relative * max(1e-3, float(value.abs().max()))
        assert float((found[name].double() - value.double()).abs().max()) <= allowed, name


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_a_step_is_that_of_the_branches(kind: Kind, last: bool) -> None:
    x = torch.randn(4, kind.channels[0], 13, 10) + 1
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    block = kind.build()
    exact = trained(block.double(), x.double(), "branches")
    assert_same(trained(block.double(), x.double(), "merged"), exact, 1e-8)
    assert_same(trained(block.float(), x, "merged"), exact, 1e-3)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(KINDS)), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_any_size_of_picture_will_do(name: str, count: int, height: int, width: int, seed: int) -> None:
    kind = KINDS[name]
    if count * -(-height // kind.stride) * -(-width // kind.stride) < 2:
        return
    torch.manual_seed(seed)
    x = torch.randn(count, kind.channels[0], height, width, dtype=torch.float64)
    block = kind.build(seed % 97).double()
    assert_same(trained(block, x, "merged"), trained(block, x, "branches"), 1e-6)


def test_one_value_a_channel_is_refused_as_batch_norm_does() -> None:
    block = KINDS["pointwise"].build().train()
    for form in ("merged", "branches"):
        block.training_form = form  # type: ignore[assignment]
        with pytest.raises(ValueError, match=r"more than (one|1) value"):
            block(torch.randn(1, 6, 1, 1))


@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_a_large_mean_does_not_cost_the_digits_of_the_variance(offset: float) -> None:
    """E[p p] - E[p] E[p] cancels: a map of 20 +- 0.1 has no digits of its variance left in float32's products."""
    x = torch.randn(4, 8, 12, 12) * 0.1 + offset
    for name in ("depthwise", "dense", "pointwise"):
        block = KINDS[name].build()
        x = x[:, : KINDS[name].channels[0]]
        exact = trained(block.double(), x.double(), "branches")
        plain, merged = (trained(block.float(), x, form) for form in ("branches", "merged"))
        for key, value in exact.items():
            # A weight's gradient cancels in the branches just as well.
            ours, theirs = (float((found[key] - value).abs().max()) for found in (merged, plain))
            assert ours <= max(1e-3 * float(value.abs().max()), 3 * theirs), key


def test_a_whole_network_is_trained_alike() -> None:
    torch.manual_seed(0)
    network = build_model(ModelConfig("pfld-ghostone", width_factor=0.25, input_size=32, conv_branches=3)).double()
    x = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    assert_same(trained(network, x, "merged"), trained(network, x, "branches"), 1e-8)
    assert_same(trained(network, x, "auto"), trained(network, x, "branches"), 1e-8)


def test_merging_changes_neither_names_nor_evaluation() -> None:
    block = KINDS["dense"].build()
    x = torch.randn(2, 6, 8, 8)
    names = list(block.state_dict())
    block.training_form = "merged"
    trained(block, x, "merged")
    assert list(block.state_dict()) == names
    merged, plain = copy.deepcopy(block).eval(), block.eval()
    plain.training_form = "branches"
    assert torch.equal(merged(x), plain(x))


def test_frozen_statistics_are_not_merged() -> None:
    block = KINDS["dense"].build().train()
    block.training_form = "merged"
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    norms[0].eval()
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    x = torch.randn(2, 6, 8, 8)
    found = block(x)
    block.training_form = "branches"
    torch.testing.assert_close(found, block(x))
    assert norms[0].running_mean is not None
    assert torch.equal(norms[0].running_mean, before[0])


@pytest.mark.parametrize("name", ["depthwise", "dense", "pointwise", "stem"])
def test_bfloat16_rounds_no_worse_than_the_branches(name: str) -> None:
    block = KINDS[name].build()
    x = torch.randn(8, KINDS[name].channels[0], 14, 14)
    exact = trained(block, x, "branches")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, merged = trained(block, x, "branches"), trained(block, x, "merged")
    for key, value in exact.items():
        allowed = 2 * (plain[key].double() - value).abs().mean() + 0.01 * value.double().abs().mean()
        assert (merged[key].double() - value).abs().mean() <= allowed, key


def test_it_pays_where_the_branches_cost_more_than_the_moments() -> None:
    assert merge_pays(64, 64, PatchGeometry(3, 1, 64), 8)
    assert merge_pays(40, 80, PatchGeometry(1, 1, 1), 6)
    assert merge_pays(3, 64, PatchGeometry(3, 2, 1), 7)
    assert not merge_pays(64, 64, PatchGeometry(3, 1, 64), 1)
    assert not merge_pays(64, 64, PatchGeometry(1, 1, 1), 1)
    assert not merge_pays(128, 128, PatchGeometry(3, 1, 1), 2)


STRAY = """
import torch
from pfld_edge_train.blocks import MobileOneBlock
torch.manual_seed(0)
torch.set_num_threads(1)
for form in ("branches", "merged"):
    block = MobileOneBlock(3, 64, 3, 2, conv_branches=6)
    block.training_form = form
    for _ in range(5):
        x = torch.randn(8, 3, 56, 56).contiguous(memory_format=torch.channels_last)
        block(x).sum().backward()
print("alive")
"""


def test_the_stem_does_not_write_out_of_bounds() -> None:
    """torch 2.13 does in a 1x1 convolution with stride 2 and three channels; the block must not use that."""
    done = subprocess.run([sys.executable, "-c", STRAY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "alive" in done.stdout


TWO = """
import sys, torch
import torch.distributed as dist
from pfld_edge_train.blocks.synchronized import synchronize_batch_norm
from pfld_edge_train.models import ModelConfig, build_model
rank = int(sys.argv[1])
torch.set_num_threads(1)
def step(group):
    torch.manual_seed(0)
    config = ModelConfig("pfld-ghostone", width_factor=0.25, input_size=32, conv_branches=2)
    network = build_model(config).double().train()
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    if group is not None:
        synchronize_batch_norm(network, group)
        x = x[rank::2]
    (network(x) ** 2).sum().backward()
    gradients = {name: value.grad for name, value in network.named_parameters()}
    if group is not None:
        for value in gradients.values():
            dist.all_reduce(value)
    return gradients | dict(network.named_buffers())
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
one, two = step(None), step(dist.group.WORLD)
for name, value in one.items():
    off = (two[name].double() - value.double()).abs().max() / max(1e-3, float(value.abs().max()))
    assert off < 1e-8, (name, off)
dist.destroy_process_group()
"""


def test_two_processes_merge_the_statistics_of_one_batch() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "error::UserWarning", "-c", TWO]
    both = [subprocess.Popen([*command, str(rank), str(port)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
