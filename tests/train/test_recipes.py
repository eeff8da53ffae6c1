"""The recipes: widening keeps every map of the narrow network, hints teach a network stage by stage."""

import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pfld_edge_convert.onnx_import import import_onnx
from pfld_edge_runtime import Contract
from pfld_edge_train.batches import Batch
from pfld_edge_train.config import LossConfig
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.models import ModelConfig, build_model

WIDEN = Path(__file__).parents[2] / "train/recipes/widen.py"


@pytest.mark.parametrize("seed", [0, 1])
def test_widening_keeps_every_map(seed: int) -> None:
    torch.manual_seed(seed)
    small = {"input_size": 32, "width_factor": 0.5}
    narrow, wide = (build_model(ModelConfig(f"pfld-edge-{size}", **small)) for size in "sm")
    narrow.train()
    for _ in range(20):
        narrow(torch.randn(16, 3, 32, 32))  # running statistics that are not those of a new network
    wide.load_state_dict(runpy.run_path(str(WIDEN))["widened"](narrow, wide, seed))
    faces = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        # The narrow network's last stage has one more block.
        blocks = [network.eval().get_submodule("blocks")[:7] for network in (narrow, wide)]
        expected, found = (part(faces) for part in blocks)
    assert expected.std() > 0.1
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, rtol=1e-4, atol=1e-5)


def test_copies_of_a_channel_differ_in_what_is_read_of_them() -> None:
    sources, shares = runpy.run_path(str(WIDEN))["copied_channels"](8, 12, torch.Generator().manual_seed(0))
    assert sorted(set(sources.tolist())) == list(range(8))
    sums = torch.zeros(8).index_add_(0, sources, shares)
    torch.testing.assert_close(sums, torch.ones(8))
    copied = [shares[sources == channel] for channel in range(8)]
    assert all(len(part) == 1 or part[0] != part[1] for part in copied)


SHARED = os.environ.get("PFLD_EDGE_SHARED")
RECIPE = runpy.run_path(str(Path(__file__).parents[2] / "train/recipes/stage_hints.py"))


@pytest.mark.skipif(SHARED is None, reason="PFLD_EDGE_SHARED is not set: no published network that teaches")
def test_the_hints_are_what_stem_and_bottlenecks_put_out() -> None:
    path = Path(str(SHARED)) / "models/reference/PFLD_GhostOne_112_1_opt_sim.onnx"
    network = build_model(ModelConfig("pfld-ghostone", fused=True)).eval()
    network.load_state_dict(import_onnx(path).weights)
    faces = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hints = RECIPE["Teacher"](path)(faces)
    stages = RECIPE["stages_of"](network, 1)
    assert len(hints) == len(stages) - 1 == 12
    with torch.no_grad():
        for stage, given, hint in zip(stages, [faces, *hints], hints, strict=False):
            torch.testing.assert_close(stage.run(given), hint, rtol=1e-4, atol=1e-4)


def test_the_stages_hold_every_weight_once() -> None:
    network = build_model(ModelConfig("pfld-ghostone", 0.25, 32, fused=True))
    held = [id(weight) for stage in RECIPE["stages_of"](network, 1) for weight in stage.parts.parameters()]
    assert sorted(held) == sorted(map(id, network.parameters()))


def test_scales_are_those_of_the_hint_at_the_start() -> None:
    torch.manual_seed(0)
    network = build_model(ModelConfig("pfld-ghostone", 0.5, 64, fused=True))
    stem, bottleneck = RECIPE["stages_of"](network, 1)[:2]
    given = torch.rand(8, 3, 64, 64)
    RECIPE["set_scales"](stem, given, torch.rand(8, 32, 32, 32))
    with torch.no_grad():
        maps = stem.run(given)
    hint = torch.randn(8, 40, 16, 16) * torch.arange(1.0, 41)[:, None, None] + 7
    RECIPE["set_scales"](bottleneck, maps, hint)
    with torch.no_grad():
        found = bottleneck.run(maps)
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), hint.mean(dim=(0, 2, 3)), rtol=1e-3, atol=0.05)
    torch.testing.assert_close(found.std(dim=(0, 2, 3)), hint.std(dim=(0, 2, 3)), rtol=1e-2, atol=0.01)


def test_every_stage_learns_from_its_hint() -> None:
    small = ModelConfig("pfld-ghostone", 0.25, 32, fused=True)
    torch.manual_seed(1)
    taught = RECIPE["stages_of"](build_model(small), 1)[:-1]

    def teacher(faces: Tensor) -> list[Tensor]:
        maps = [faces]
        with torch.no_grad():
            for stage in taught:
                maps.append(stage.run(maps[-1]))
        return maps[1:]

    random = torch.Generator().manual_seed(2)
    batches = [
        Batch(
            faces=torch.rand(4, 3, 32, 32, generator=random),
            landmarks=torch.rand(4, 98, 2, generator=random),
            weights=torch.ones(4, 98),
            attributes=torch.zeros(4, 6, dtype=torch.bool),
        )
        for _ in range(4)
    ]
    torch.manual_seed(0)
    network = build_model(small)
    run = RECIPE["Run"](network, RECIPE["stages_of"](network, 40), [])
    loss_of = LandmarkLoss(LossConfig(), 32, Contract(input_size=32))
    losses = np.array([run.learn(batches[i % 4], teacher, loss_of) for i in range(20)])
    assert run.done == 20
    assert np.isfinite(losses).all()
    assert (losses[16:, :-1].mean(axis=0) < losses[:4, :-1].mean(axis=0)).all()
    # The first two stages, the simplest, end halfway.
    assert np.flatnonzero(np.isnan(run.learn(batches[0], teacher, loss_of))).tolist() == [0, 1]
