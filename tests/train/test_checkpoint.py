"""Checkpoints: what is read, what is refused, and the configuration that weights alone reveal."""

import functools
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pfld_edge_train.checkpoint import (
    Checkpoint,
    fill_network,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from pfld_edge_train.errors import CheckpointError
from pfld_edge_train.models import MODEL_KINDS, ModelConfig, build_model
from pfld_edge_train.models.edge import SHAPES
from pfld_edge_train.models.published import infer_config, width_candidates

CONFIG = ModelConfig("pfld-ghostone", width_factor=0.5, input_size=64, num_landmarks=5, conv_branches=2)


@functools.cache
def built(config: ModelConfig) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config)


def weights(config: ModelConfig = CONFIG) -> dict[str, torch.Tensor]:
    """Of one network for all tests, which may change the dict and no tensor."""
    return dict(built(config).state_dict())


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    saved = Checkpoint(
        weights(), CONFIG, ema_weights=weights(), optimizer={"lr": 0.1}, step=7, epoch=3, best_nme=0.05,
        config={"model": "pfld-ghostone"}, contract={"format_version": 1},
    )  # fmt: skip
    save_checkpoint(tmp_path / "run/last.pth", saved)
    loaded = load_checkpoint(tmp_path / "run/last.pth")
    assert (loaded.model, loaded.step, loaded.epoch, loaded.best_nme) == (CONFIG, 7, 3, 0.05)
    assert (loaded.optimizer, loaded.config, loaded.contract) == (saved.optimizer, saved.config, saved.contract)
    assert all(torch.equal(loaded.weights[name], saved.weights[name]) for name in saved.weights)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.pth"]


@pytest.mark.parametrize(("points", "branches"), [(68, 1), (98, 6)])
@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_a_bare_state_dict_tells_its_network(tmp_path: Path, kind: str, points: int, branches: int) -> None:
    multi = branches if kind == "pfld-ghostone" or kind in SHAPES else 1
    config = ModelConfig(kind, width_factor=0.5, input_size=96, num_landmarks=points, conv_branches=multi)
    torch.save(weights(config), tmp_path / "bare.pth")
    assert load_checkpoint(tmp_path / "bare.pth").model == config


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_fused_weights_are_told_from_branched_ones(tmp_path: Path, kind: str) -> None:
    torch.save(weights(ModelConfig(kind, fused=True)), tmp_path / "fused.pth")
    assert load_checkpoint(tmp_path / "fused.pth").model == ModelConfig(kind, fused=True)


@pytest.mark.parametrize("name", ["pfld-edge-s", "pfld-edge-m"])
def test_checkpoints_of_the_networks_that_had_the_names_first_still_load(tmp_path: Path, name: str) -> None:
    weights = build_model(ModelConfig(f"{name}1", 0.25, 32)).state_dict()
    save_checkpoint(tmp_path / "old.pth", Checkpoint(weights, ModelConfig(name, 0.25, 32)))
    network, checkpoint = load_model(tmp_path / "old.pth")
    assert checkpoint.model == ModelConfig(f"{name}1", 0.25, 32)
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("key", ["state_dict", "pfld_backbone", "plfd_backbone"])
def test_other_projects_dicts_and_prefixes_are_read(tmp_path: Path, key: str) -> None:
    prefixed = {f"module.{name}": value for name, value in weights().items()}
    torch.save({"epoch": 9, key: prefixed}, tmp_path / "other.pth")
    model, checkpoint = load_model(tmp_path / "other.pth")
    assert checkpoint.model == CONFIG
    assert torch.equal(model.state_dict()["fc.weight"], weights()["fc.weight"])


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "model.", "backbone.", "net.", "module._orig_mod.", "model.backbone."]
)
def test_wrappers_prefixes_are_dropped_with_what_lies_beside(tmp_path: Path, prefix: str) -> None:
    prefixed = {f"{prefix}{name}": value for name, value in weights().items()}
    torch.save({"state_dict": prefixed | {"teacher.weight": torch.zeros(2)}}, tmp_path / "wrapped.pth")
    model, checkpoint = load_model(tmp_path / "wrapped.pth")
    assert checkpoint.model == CONFIG
    assert torch.equal(model.state_dict()["fc.weight"], weights()["fc.weight"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fc.bias", float("nan"), "fc.bias holds NaN or infinite values"),
        ("conv1.rbr_conv.0.bn.running_var", -1.0, "running_var holds a negative variance"),
    ],
)
def test_values_that_no_training_gives_are_named(tmp_path: Path, name: str, value: float, message: str) -> None:
    state = weights()
    state[name] = torch.full_like(state[name], value)
    torch.save(state, tmp_path / "spoilt.pth")
    with pytest.raises(CheckpointError, match=rf"spoilt\.pth: .*{message}"):
        load_model(tmp_path / "spoilt.pth")


def test_the_public_checkpoints_names_are_ours() -> None:
    names = set(build_model(ModelConfig("pfld-ghostone", conv_branches=6)).state_dict())
    assert "conv1.rbr_conv.0.conv.weight" in names
    assert "conv3_1.ghost_conv.0.primary_conv.rbr_conv.5.bn.running_var" in names
    assert "conv3_1.ghost_conv.1.rbr_scale.bn.running_var" in names
    assert "conv3_1.ghost_conv.0.cheap_operation.rbr_skip.weight" in names


def test_scale_branches_of_pointwise_blocks_are_read(tmp_path: Path) -> None:
    config = ModelConfig("pfld-ghostone", width_factor=0.25, input_size=32, conv_branches=3, pointwise_scale=True)
    saved = weights(config)
    assert "conv3_1.ghost_conv.0.primary_conv.rbr_scale.bn.running_var" in saved
    torch.save(saved, tmp_path / "scaled.pth")
    model, checkpoint = load_model(tmp_path / "scaled.pth")
    assert checkpoint.model == config
    assert model.state_dict().keys() == saved.keys()


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("dump", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))])
def test_a_pickle_bomb_is_refused_and_never_runs(tmp_path: Path, dump: object) -> None:
    dump(Bomb(tmp_path / "exploded"), tmp_path / "bomb.pth")  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="could run code"):
        load_checkpoint(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 10, 1000, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, keep: float) -> None:
    torch.save(weights(), tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: int(keep if keep >= 1 or keep == 0 else keep * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.pth: "):
        load_checkpoint(tmp_path / "cut.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Other projects number their blocks too.
        (
            {"blocks.0.norm1.weight": torch.zeros(3)},
            "unknown network: expected .*found names like blocks.0.norm1.weight",
        ),
        ({"layer.weight": torch.zeros(3)}, "unknown network: expected those of pfld,.*found names like layer.weight"),
        ([1, 2], "expected a dict of weights, found list"),
        ({"epoch": 3}, "found other things, such as 'epoch'"),
        ({}, "found nothing"),
    ],
)
def test_foreign_files_say_what_was_expected(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "foreign.pth")


@pytest.mark.parametrize("text", ["hello, this is no checkpoint", "root:x:0:0:root", "q", "(((", "}", "\x80\x02."])
def test_text_is_not_a_checkpoint(tmp_path: Path, text: str) -> None:
    (tmp_path / "notes.pth").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"notes\.pth: "):
        load_checkpoint(tmp_path / "notes.pth")


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_get_a_sentence(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.pth"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="noise"):
            load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv2.rbr_scale.conv.weight"), "lacks conv2.rbr_scale.conv.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "has unknown extra"),
        (
            lambda state: state.update({"conv7.rbr_conv.0.bn.weight": torch.zeros(3)}),
            r"conv7.rbr_conv.0.bn.weight should have shape \(16,\), found \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: object, message: str) -> None:
    state = weights()
    change(state)  # type: ignore[operator]
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "odd.pth")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weights", 3, "weights is of type int"),
        ("weights", {"fc.bias": 3}, "not all tensors"),
        ("ema_weights", 5, "ema_weights is of type int"),
        ("epoch", "last", "epoch is of type str"),
        ("model", {"kind": "pfld-huge"}, "unknown network 'pfld-huge'; known: pfld, "),
        ("model", {"kind": "pfld", "depth": 3}, "description of the network is unreadable"),
        ("model", {"kind": "pfld", "input_size": 100}, "multiple of 16"),
        ("format", "pfld-edge-checkpoint-9", "not known to this version, which reads pfld-edge-checkpoint-1"),
    ],
)
def test_a_damaged_checkpoint_of_ours_says_what_is_damaged(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    save_checkpoint(tmp_path / "run.pth", Checkpoint(weights(), CONFIG))
    record = torch.load(tmp_path / "run.pth", weights_only=True)
    torch.save({**record, field: value}, tmp_path / "run.pth")
    with pytest.raises(CheckpointError, match=rf"run\.pth: .*{message}"):
        load_model(tmp_path / "run.pth")


@pytest.mark.parametrize("name", ["conv1.rbr_conv.0.conv.weight", "conv8.0.weight", "fc.weight"])
@pytest.mark.parametrize("damaged", [torch.zeros(()), torch.zeros(0, 3), torch.zeros(3, 3, 3, 3, 3)])
def test_weights_of_impossible_shape_are_named(tmp_path: Path, name: str, damaged: torch.Tensor) -> None:
    torch.save({**weights(), name: damaged}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: "):
        load_model(tmp_path / "odd.pth")


# None is a multiple of 1/64 or 1/16: the first layer's channels alone don't tell the width.
@pytest.mark.parametrize("width", [0.35, 0.7, 0.8, 1.3])
@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_the_inferred_width_builds_the_same_shapes(kind: str, width: float) -> None:
    with torch.device("meta"):
        weights = build_model(ModelConfig(kind, width)).state_dict()
        rebuilt = build_model(infer_config(weights, kind)).state_dict()
    assert {name: value.shape for name, value in rebuilt.items()} == {
        name: value.shape for name, value in weights.items()
    }


@pytest.mark.parametrize("width", [0.25, 0.7, 1.0])
def test_round_widths_come_back_as_they_were(width: float) -> None:
    with torch.device("meta"):
        weights = build_model(ModelConfig("pfld-ghostnet", width)).state_dict()
    assert infer_config(weights, "pfld-ghostnet").width_factor == width


def test_every_candidate_width_gives_the_first_layer_its_channels() -> None:
    for channels in range(10, 130):
        for width in width_candidates("pfld-ghostnet", channels):
            assert ModelConfig("pfld-ghostnet", width).scaled(64) == channels


def test_any_network_is_filled_from_a_wrapped_state_dict(tmp_path: Path) -> None:
    source, target = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2))
    record = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in source.state_dict().items()}}
    torch.save(record, tmp_path / "a.pth")
    fill_network(target, tmp_path / "a.pth")
    assert torch.equal(target[0].weight, source[0].weight)
    with pytest.raises(CheckpointError, match="the checkpoint lacks weight"):
        fill_network(nn.Linear(2, 2), tmp_path / "a.pth")
