"""Re-parameterization: the merged network is the branched one."""

import pytest
import torch
from torch import nn

from pfld_edge_convert.reparameterize import reparameterize
from pfld_edge_train.blocks import MobileOneBlock
from pfld_edge_train.models import MODEL_KINDS, ModelConfig, build_model
from pfld_edge_train.models.edge import HeatMaps


def trained_looking(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and factors that are far from their start values."""
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.3, 3)
            nn.init.uniform_(part.weight, 0.4, 1.5)
            nn.init.normal_(part.bias, std=0.3)
        if isinstance(part, HeatMaps):
            nn.init.normal_(part.heat.weight)  # maps with peaks, not all means at the centre
    return model.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_output_is_unchanged(kind: str, branches: int, dtype: torch.dtype, tolerance: float) -> None:
    config = ModelConfig(kind, width_factor=0.5, input_size=64, conv_branches=branches)
    model = trained_looking(build_model(config)).to(dtype)
    faces = torch.rand(3, 3, 64, 64, dtype=dtype) * 2 - 1
    with torch.no_grad():
        expected = model(faces)
        assert expected.std() > 0.01
        # Relative to the output's own size: random networks answer far outside 0..1.
        difference = (reparameterize(model)(faces) - expected).abs().max() / expected.abs().max()
    assert difference < tolerance


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_with_statistics_of_its_own_features_the_difference_is_absolute(kind: str) -> None:
    """BatchNorm that has seen data keeps the output of order one, as in a trained network."""
    model = trained_looking(build_model(ModelConfig(kind, width_factor=0.5, input_size=64, conv_branches=6))).train()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # the mean of all batches
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, 3, 64, 64) * 2 - 1)
        faces = torch.rand(4, 3, 64, 64) * 2 - 1
        assert (reparameterize(model)(faces) - model.eval()(faces)).abs().max() < 1e-4
        assert (reparameterize(model.double())(faces.double()) - model(faces.double())).abs().max() < 1e-5


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_the_model_that_was_given_is_untouched(kind: str) -> None:
    model = trained_looking(build_model(ModelConfig(kind, width_factor=0.5, input_size=32, conv_branches=2)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reparameterize(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_no_branch_and_no_batchnorm_is_left(kind: str) -> None:
    fused = reparameterize(build_model(ModelConfig(kind, conv_branches=2)))
    assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_the_merged_network_is_the_one_built_fused(kind: str) -> None:
    merged = reparameterize(build_model(ModelConfig(kind, conv_branches=2))).state_dict()
    built = build_model(ModelConfig(kind, fused=True)).state_dict()
    assert {name: value.shape for name, value in merged.items()} == {name: value.shape for name, value in built.items()}


@pytest.mark.parametrize(
    ("kind", "parameters"), [("pfld-ghostone", 702_864), ("pfld-ghostnet", 804_444), ("pfld-ghostnet-slim", 735_968)]
)
def test_inference_networks_have_the_published_files_weights(kind: str, parameters: int) -> None:
    fused = reparameterize(build_model(ModelConfig(kind)))
    assert sum(parameter.numel() for parameter in fused.parameters()) == parameters


def test_a_pointwise_block_with_scale_branch_merges_exactly() -> None:
    block = trained_looking(MobileOneBlock(6, 6, 1, conv_branches=2, pointwise_scale=True)).double()
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(reparameterize(block)(x), block(x), atol=1e-12, rtol=0)


def test_a_grouped_block_with_skip_merges_exactly() -> None:
    block = trained_looking(MobileOneBlock(8, 8, 3, groups=4, conv_branches=4)).double()
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(reparameterize(block)(x), block(x), atol=1e-12, rtol=0)
