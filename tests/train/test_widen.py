"""A network that was widened gives the maps of the narrow one."""

import runpy
from pathlib import Path

import pytest
import torch

from pfld_edge_train.models import ModelConfig, build_model

RECIPE = Path(__file__).parents[2] / "train/recipes/widen.py"


@pytest.mark.parametrize("seed", [0, 1])
def test_widening_keeps_every_map(seed: int) -> None:
    torch.manual_seed(seed)
    small = {"input_size": 32, "width_factor": 0.5}
    narrow, wide = (build_model(ModelConfig(f"pfld-edge-{size}", **small)) for size in "sm")
    narrow.train()
    for _ in range(20):
        narrow(torch.randn(16, 3, 32, 32))  # running statistics that are not those of a new network
    wide.load_state_dict(runpy.run_path(str(RECIPE))["widened"](narrow, wide, seed))
    faces = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        # The narrow network's last stage has one more block.
        blocks = [network.eval().get_submodule("blocks")[:7] for network in (narrow, wide)]
        expected, found = (part(faces) for part in blocks)
    assert expected.std() > 0.1
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, rtol=1e-4, atol=1e-5)


def test_copies_of_a_channel_differ_in_what_is_read_of_them() -> None:
    sources, shares = runpy.run_path(str(RECIPE))["copied_channels"](8, 12, torch.Generator().manual_seed(0))
    assert sorted(set(sources.tolist())) == list(range(8))
    sums = torch.zeros(8).index_add_(0, sources, shares)
    torch.testing.assert_close(sums, torch.ones(8))
    copied = [shares[sources == channel] for channel in range(8)]
    assert all(len(part) == 1 or part[0] != part[1] for part in copied)
