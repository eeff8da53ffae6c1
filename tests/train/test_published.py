"""Checkpoints of public PFLD projects become networks that compute what those projects' networks compute.

Each project's network is stated again below from its description, in plain torch, with its own parameter names.
"""

from collections import OrderedDict
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfld_edge_runtime.session import open_session
from pfld_edge_train.checkpoint import load_model
from pfld_edge_train.errors import CheckpointError
from pfld_edge_train.models import ModelConfig


def norm(channels: int) -> nn.BatchNorm2d:
    """A BatchNorm that has seen data."""
    layer = nn.BatchNorm2d(channels)
    for value in (layer.running_var, layer.weight.data, layer.running_mean, layer.bias.data):
        assert value is not None
        value.uniform_(0.5, 1.5)
    return layer


class ZhaoBlock(nn.Module):
    def __init__(self, inp: int, oup: int, stride: int, shortcut: bool, expand: int) -> None:
        super().__init__()
        mid = inp * expand
        self.shortcut = shortcut
        self.conv = nn.Sequential(
            nn.Conv2d(inp, mid, 1, bias=False), norm(mid), nn.ReLU(),
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), norm(mid), nn.ReLU(),
            nn.Conv2d(mid, oup, 1, bias=False), norm(oup),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class Zhao(nn.Module):
    """polarisZhao/PFLD-pytorch; some forks run bn8, which the others only hold."""

    def __init__(self, width: float, points: int, runs_bn8: bool) -> None:
        super().__init__()
        a, b, c, d = (int(channels * width) for channels in (64, 128, 16, 32))
        self.runs_bn8 = runs_bn8
        self.conv1, self.bn1 = nn.Conv2d(3, a, 3, 2, 1, bias=False), norm(a)
        self.conv2, self.bn2 = nn.Conv2d(a, a, 3, 1, 1, bias=False), norm(a)
        self.conv3_1 = ZhaoBlock(a, a, 2, False, 2)
        for i in range(2, 6):
            self.add_module(f"block3_{i}", ZhaoBlock(a, a, 1, True, 2))
        self.conv4_1, self.conv5_1 = ZhaoBlock(a, b, 2, False, 2), ZhaoBlock(b, b, 1, False, 4)
        for i in range(2, 7):
            self.add_module(f"block5_{i}", ZhaoBlock(b, b, 1, True, 4))
        self.conv6_1 = ZhaoBlock(b, c, 1, False, 2)
        self.conv7 = nn.Sequential(nn.Conv2d(c, d, 3, 2, 1, bias=False), norm(d), nn.ReLU())
        self.conv8, self.bn8 = nn.Conv2d(d, b, 7), norm(b) if runs_bn8 else nn.BatchNorm2d(b)
        self.fc = nn.Linear(b + c + d, 2 * points)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        for block in self.children():
            x = block(x) if isinstance(block, ZhaoBlock) else x
        y = self.conv7(x)
        z = self.conv8(y)
        z = F.relu(self.bn8(z) if self.runs_bn8 else z)
        return self.fc(torch.cat([x.mean((2, 3)), y.mean((2, 3)), z.flatten(1)], dim=1))


class ElsersyBlock(nn.Module):
    def __init__(self, inp: int, oup: int, expand: int, stride: int = 1) -> None:
        super().__init__()
        mid = inp * expand
        self.shortcut = stride == 1 and inp == oup
        self.expantion_pointwise_conv, self.bn1 = nn.Conv2d(inp, mid, 1, bias=False), norm(mid)
        self.depth_wise_conv = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False)
        self.bn2 = norm(mid)
        self.squeeze_pointwise_conv, self.bn3 = nn.Conv2d(mid, oup, 1, bias=False), norm(oup)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.expantion_pointwise_conv(x)))
        y = self.bn3(self.squeeze_pointwise_conv(F.relu(self.bn2(self.depth_wise_conv(y)))))
        return x + y if self.shortcut else y


class ElsersySeparable(nn.Module):
    def __init__(self, a: int) -> None:
        super().__init__()
        self.depth_wise_conv, self.bn1 = nn.Conv2d(a, a, 3, 1, 1, groups=a), norm(a)
        self.point_wise_conv, self.bn2 = nn.Conv2d(a, a, 1), norm(a)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.point_wise_conv(F.relu(self.bn1(self.depth_wise_conv(x))))))


class Elsersy(nn.Module):
    """AmrElsersy/PFLD-Pytorch-Landmarks."""

    def __init__(self, width: float, points: int) -> None:
        super().__init__()
        a, b, c, d = (int(channels * width) for channels in (64, 128, 16, 32))
        self.conv = nn.Sequential(nn.Conv2d(3, a, 3, 2, 1, bias=False), norm(a), nn.ReLU())
        self.depth_wise_conv = ElsersySeparable(a)
        self.bottleneck_1_first = ElsersyBlock(a, a, 2, 2)
        self.bottleneck_1 = nn.ModuleList(ElsersyBlock(a, a, 2) for _ in range(3))
        self.bottleneck_1_last, self.bottleneck_2 = ElsersyBlock(a, a, 2), ElsersyBlock(a, b, 2, 2)
        self.bottleneck_3 = nn.ModuleList(ElsersyBlock(b, b, 4) for _ in range(6))
        self.bottleneck_3[0].shortcut = False
        self.bottleneck_4 = ElsersyBlock(b, c, 2)
        self.conv1 = nn.Sequential(nn.Conv2d(c, d, 3, 2, 1, bias=False), norm(d), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(d, b, 7, bias=False), nn.ReLU())
        self.fc = nn.Linear(b + c + d, 2 * points)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bottleneck_1_first(self.depth_wise_conv(self.conv(x)))
        for block in [*self.bottleneck_1, self.bottleneck_1_last, self.bottleneck_2, *self.bottleneck_3]:
            x = block(x)
        x = self.bottleneck_4(x)
        y = self.conv1(x)
        return self.fc(torch.cat([x.mean((2, 3)), y.mean((2, 3)), self.conv2(y).flatten(1)], dim=1))


class LuffyBlock(nn.Module):
    def __init__(self, inp: int, oup: int, expand: int, stride: int = 1) -> None:
        super().__init__()
        mid = inp * expand
        self.shortcut = stride == 1 and inp == oup
        self.conv1, self.bn1 = nn.Conv2d(inp, mid, 1), norm(mid)
        self.depth_conv2, self.bn2 = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid), norm(mid)
        self.conv3, self.bn3 = nn.Conv2d(mid, oup, 1), norm(oup)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv3(F.relu6(self.bn2(self.depth_conv2(self.bn1(self.conv1(x)))))))
        return x + y if self.shortcut else y


class Luffy(nn.Module):
    """github-luffy/PFLD_68points_Pytorch, `MobileNetV2`."""

    def __init__(self, width: float, points: int) -> None:
        super().__init__()
        a, b, c, d = (int(channels * width) for channels in (64, 128, 16, 32))
        self.conv1, self.bn1 = nn.Conv2d(3, a, 3, 2, 1), norm(a)
        self.depth_conv2, self.bn2 = nn.Conv2d(a, a, 3, 1, 1, groups=a), norm(a)
        stages = [LuffyBlock(a, a, 2, 2 if i == 0 else 1) for i in range(5)]
        self.stage0 = nn.Sequential(OrderedDict((f"LinearBottleneck0_{i}", block) for i, block in enumerate(stages)))
        stages = [LuffyBlock(a, b, 2, 2), *(LuffyBlock(b, b, 4) for _ in range(6))]
        self.stage1 = nn.Sequential(OrderedDict((f"LinearBottleneck1_{i}", block) for i, block in enumerate(stages)))
        self.linear_bottleneck_end = nn.Sequential(LuffyBlock(b, c, 2))
        self.conv3, self.bn3 = nn.Conv2d(c, d, 3, 2, 1), norm(d)
        self.conv4, self.bn4 = nn.Conv2d(d, b, 7), norm(b)
        self.fc = nn.Linear(14 * 14 * c + 7 * 7 * d + b, 2 * points)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn1(self.conv1(x)))
        x = F.relu6(self.bn2(self.depth_conv2(x)))
        x = self.linear_bottleneck_end(self.stage1(self.stage0(x)))
        y = F.relu6(self.bn3(self.conv3(x)))
        z = F.relu6(self.bn4(self.conv4(y)))
        return self.fc(torch.cat([x.flatten(1), y.flatten(1), z.flatten(1)], dim=1))


def same(theirs: nn.Module, path: Path, kind: str, width: float, points: int) -> None:
    ours, checkpoint = load_model(path)
    assert checkpoint.model == ModelConfig(kind, width, 112, points)
    faces = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = theirs.eval()(faces), ours(faces)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("width", "points", "runs_bn8"), [(0.5, 98, False), (0.25, 106, True)])
def test_polariszhaos_checkpoints_and_their_forks_are_read(
    tmp_path: Path, width: float, points: int, runs_bn8: bool
) -> None:
    torch.manual_seed(0)
    network = Zhao(width, points, runs_bn8)
    record = {"epoch": 3, "plfd_backbone": network.state_dict(), "auxiliarynet": {"fc1.weight": torch.zeros(32, 128)}}
    torch.save(record, tmp_path / "a.pth.tar")
    same(network, tmp_path / "a.pth.tar", "pfld-polariszhao", width, points)


def test_amrelsersys_checkpoints_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Elsersy(0.5, 68)
    torch.save({"pfld": network.state_dict(), "auxiliary": {}}, tmp_path / "a.pth")
    same(network, tmp_path / "a.pth", "pfld-amrelsersy", 0.5, 68)


def test_github_luffys_checkpoints_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Luffy(0.25, 68)
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, tmp_path / "a.pth")
    same(network, tmp_path / "a.pth", "pfld-luffy", 0.25, 68)


def test_cunjians_weights_compute_what_its_onnx_file_computes(shared: Path, tmp_path: Path) -> None:
    path = shared / "models/public/pfld68_dynamic_batch.onnx"
    weights = {item.name: torch.tensor(onnx.numpy_helper.to_array(item)) for item in onnx.load(path).graph.initializer}
    torch.save({name: value for name, value in weights.items() if "." in name}, tmp_path / "a.pth")
    network, checkpoint = load_model(tmp_path / "a.pth")
    assert checkpoint.model == ModelConfig("pfld-cunjian", num_landmarks=68)
    faces = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    (expected,) = open_session(path).run(None, {"input": faces.numpy()})
    torch.testing.assert_close(network(faces).detach(), torch.tensor(expected), rtol=0, atol=1e-5)


def test_a_pickled_module_is_refused_with_the_lines_that_save_its_weights(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "best.pth")
    with pytest.raises(CheckpointError) as refused:
        load_model(tmp_path / "best.pth")
    steps = 'model = torch.load("best.pth", weights_only=False); torch.save(model.state_dict(), "best.state.pth")'
    assert str(refused.value).endswith(steps)
    assert "\n" not in str(refused.value)


def test_an_unknown_network_is_named_after_its_nearest_with_what_differs(tmp_path: Path) -> None:
    weights = Zhao(0.25, 98, runs_bn8=False).state_dict()
    strange = {f"my_{name}" if name.startswith("conv2.") else name: value for name, value in weights.items()}
    torch.save(strange, tmp_path / "a.pth")
    differ = r"it lacks conv2\.weight \(1 such names\) and it has my_conv2\.weight \(1 such names\)"
    with pytest.raises(CheckpointError, match=rf"unknown network; nearest is pfld-polariszhao, but {differ}"):
        load_model(tmp_path / "a.pth")


def test_a_network_of_another_family_is_nearest_to_none(tmp_path: Path) -> None:
    torch.save({"layers.0.kernel": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"expected those of pfld, .*, found names like layers\.0\.kernel$"):
        load_model(tmp_path / "a.pth")
