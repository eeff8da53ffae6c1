"""The recipes: pseudo-labels, the curve of heat maps' spreads, hints of a teacher, last layers, the face detector."""

import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pfld_edge_calib import portraits
from pfld_edge_calib.evaluation.metrics import fitted_curve
from pfld_edge_calib.find_landmarks import overlaps
from pfld_edge_convert.onnx_import import import_onnx
from pfld_edge_runtime import BUNDLED_MODEL, ConfidenceCurve, Contract, LandmarkModel, open_detector
from pfld_edge_train.batches import Batch, training_batches
from pfld_edge_train.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from pfld_edge_train.config import LossConfig, load_config
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.face_cache import open_cache
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.models import ModelConfig, build_model

from .conftest import WriteConfig

RECIPE = runpy.run_path(str(Path(__file__).parents[2] / "train/recipes/stage_hints.py"))


def test_the_hints_are_what_stem_and_bottlenecks_put_out(shared: Path) -> None:
    path = shared / "models/reference/PFLD_GhostOne_112_1_opt_sim.onnx"
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


def test_a_stopped_run_goes_on_with_the_same_weights(tmp_path: Path) -> None:
    small = ModelConfig("pfld-ghostone", 0.25, 32, fused=True)
    torch.manual_seed(1)
    taught = RECIPE["stages_of"](build_model(small), 1)[:-1]

    def teacher(faces: Tensor) -> list[Tensor]:
        maps = [faces]
        with torch.no_grad():
            for stage in taught:
                maps.append(stage.run(maps[-1]))
        return maps[1:]

    def new_run(seed: int) -> Any:
        torch.manual_seed(seed)
        network = build_model(small)
        return RECIPE["Run"](network, RECIPE["stages_of"](network, 10), [])

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
    contract = Contract(input_size=32)
    loss_of = LandmarkLoss(LossConfig(), 32, contract)
    whole, stopped, resumed = new_run(0), new_run(0), new_run(9)
    for run, part in ((whole, batches), (stopped, batches[:2])):
        torch.manual_seed(4)
        for batch in part:
            run.learn(batch, teacher, loss_of)
    save_checkpoint(tmp_path / "hints.pth", stopped.checkpoint(small, contract))
    resumed.resume(load_checkpoint(tmp_path / "hints.pth"))
    assert resumed.done == 2
    for batch in batches[2:]:
        resumed.learn(batch, teacher, loss_of)
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, resumed.model.state_dict()[name])


@pytest.fixture
def detector_recipe(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    folder = Path(__file__).parents[2] / "train/recipes"
    monkeypatch.syspath_prepend(str(folder))
    return runpy.run_path(str(folder / "face_detector.py"))


def test_the_runtime_reads_an_exported_detector_as_the_recipe_does(
    detector_recipe: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = detector_recipe["FaceDetectorNet"]()
    for output in network.outputs:
        torch.nn.init.normal_(output.weight, std=0.05)
        output.bias.data[0] = 0  # a new network finds nothing
    torch.save({"ema": network.state_dict()}, tmp_path / "last.pt")
    arguments = ["export", str(tmp_path / "last.pt"), "-o", str(tmp_path / "detector.onnx")]
    detector_recipe["main"](arguments, standalone_mode=False)
    photo = np.random.default_rng(0).integers(0, 256, (224, 320, 3), np.uint8)
    network = detector_recipe["read_network"](tmp_path / "last.pt")
    wanted = detector_recipe["network_detector"](network, 0.5)(photo)
    found = open_detector(tmp_path / "detector.onnx", score_threshold=0.5, largest_side=320, max_faces=len(wanted))(
        photo, "bgr"
    )
    assert len(wanted) > 10
    # Only some way down, where scores tell the order.
    assert np.allclose(np.sort(found[:, 4])[-10:], np.sort(wanted[:, 4])[-10:], atol=1e-4)
    np.testing.assert_allclose(found[:5, :4], wanted[np.argsort(-wanted[:, 4])][:5, :4], atol=0.05)


def test_cells_that_predict_a_face_exactly_have_no_loss_of_box_and_points(detector_recipe: dict[str, Any]) -> None:
    centers, strides = detector_recipe["cell_grid"](64, 64)
    box, points = np.array([[20, 20, 44, 44]], np.float32), np.array([[[26, 30], [38, 30], [32, 40]]], np.float32)
    middle, marks = torch.tensor([32.0, 32.0]), torch.from_numpy(points[0])
    cells = torch.zeros(1, len(centers), 11)
    cells[0, :, 1:3] = (middle - centers) / strides[:, None]
    cells[0, :, 3:5] = torch.log(24 / strides)[:, None]
    cells[0, :, 5:] = ((marks[None] - centers[:, None]) / strides[:, None, None]).flatten(1)
    sample = detector_recipe["Photo"](np.zeros((64, 64, 3), np.uint8), box, points, np.array([False]))
    losses = detector_recipe["detection_loss"](cells, [sample], centers, strides)
    torch.testing.assert_close(losses.box, torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(losses.points, torch.tensor(0.0), atol=1e-5, rtol=0)
    assert losses.score > 0


def test_true_points_correct_their_own_and_their_neighbours_but_not_a_shared_offset(labels: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    points = random.uniform(0, 100, (5, 98, 2)).astype(np.float32)
    points[:, 60], points[:, 72] = (20, 40), (80, 40)  # the face's own axes are the picture's
    true = points[:, labels["NEAREST_68"]] + np.float32(3)  # a difference of definition
    np.testing.assert_allclose(labels["corrected"](points, true), points, atol=1e-4)
    true[0, 20] += (0, 10)  # one brow point, WFLW's 36
    assert labels["NEAREST_68"][20] == 36
    moved = labels["corrected"](points, true) - points
    expected = np.zeros((5, 98, 2))
    expected[0, 36] = (0, 10 * 0.4)
    expected[0, [38, 39]] = (0, 10 * 0.4 / 2)
    np.testing.assert_allclose(moved, expected, atol=1e-3)


def test_the_spread_curve_is_the_logistic_that_drew_the_points() -> None:
    random = np.random.default_rng(0)
    spreads = np.exp(random.normal(-3, 0.8, (500, 98)))
    truth = ConfidenceCurve(0.06, 3.0)
    found = fitted_curve(spreads, random.random(spreads.shape) < truth(spreads))
    assert (found.middle, found.steepness) == (pytest.approx(0.06, rel=0.05), pytest.approx(3.0, rel=0.05))


@pytest.fixture(scope="module")
def labels() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "train/recipes/pseudo_label.py"))


@pytest.fixture(scope="module")
def last_layers() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "train/recipes/last_layers.py"))


def test_least_squares_are_those_of_lstsq_with_a_row_of_noise_for_each_input(last_layers: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    inputs, wanted = random.normal(3, [1, 2, 0.1, 1], (50, 4)), random.normal(size=(50, 3))
    shares, noise = random.uniform(0.1, 1, 50), np.array([0.1, 0.5, 0.02, 0.3])
    rows = np.c_[inputs, np.ones(50)] * np.sqrt(shares / shares.sum())[:, None]
    rows = np.r_[rows, np.c_[np.diag(noise), np.zeros(4)]]
    aims = np.r_[wanted * np.sqrt(shares / shares.sum())[:, None], np.zeros((4, 3))]
    expected = np.linalg.lstsq(rows, aims, rcond=None)[0]
    weight, bias = last_layers["least_squares"](*map(torch.from_numpy, (inputs, wanted, shares, noise)))
    np.testing.assert_allclose(weight.T, expected[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bias, expected[4], rtol=1e-5, atol=1e-6)
    inputs[:, 1] = 0  # a feature that no face has
    noise = last_layers["deviations"](torch.from_numpy(inputs))
    weight, _ = last_layers["least_squares"](*map(torch.from_numpy, (inputs, wanted, shares)), noise)
    assert torch.equal(weight[:, 1], torch.zeros(3))
    assert weight.isfinite().all()


def test_a_folded_correction_gives_what_both_layers_give(last_layers: dict[str, Any]) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(20, 6) * torch.tensor([1, 2, 3, 0.1, 5, 1]) + 2
    both = last_layers["Correction"](torch.nn.Linear(6, 4).requires_grad_(False), inputs, torch.tensor([1, 0.1, 2, 1]))
    expected = both(inputs)
    torch.testing.assert_close(both.folded()(inputs), expected)


def wider(folder: Path) -> Path:
    """A folder like WIDER FACE's: both portraits and their faces' boxes."""
    (folder / "images").mkdir()
    rows = ["image,x0,y0,x1,y1,blur"]
    for face in portraits(Contract()):
        shutil.copy(face.image, folder / "images")
        rows.append(",".join(map(str, [face.image.name, *face.bbox_xyxy.tolist(), 0])))
    (folder / "boxes.csv").write_text("\n".join(rows))
    return folder


def test_crops_without_a_face_show_none(last_layers: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainConfigError, match=r"no boxes\.csv"):
        last_layers["faceless_crops"](tmp_path, Contract())
    crops = last_layers["faceless_crops"](wider(tmp_path), Contract())
    assert crops.shape[1:] == (112, 112, 3)
    assert 2 <= len(crops) <= 4
    network = LandmarkModel.open(BUNDLED_MODEL)
    assert network.contract.spread_curve is not None
    assert (network.contract.spread_curve(network.predict_with_spread(crops)[1]).mean(1) < 0.6).all()
    boxes = np.array([[0, 0, 2, 2], [5.0, 5, 6, 6], [1, 0, 2, 1]])
    areas = overlaps(boxes[:, None], boxes, of_smaller=True)
    np.testing.assert_allclose(areas, [[1, 0, 1], [0, 1, 0], [1, 0, 1]])


def test_turned_faces_keep_their_points(last_layers: dict[str, Any]) -> None:
    torch.manual_seed(0)
    points, size = torch.randint(0, 32, (400, 1, 2)), 32
    faces = torch.zeros(400, 3, size, size)
    faces[torch.arange(400), 0, points[:, 0, 1], points[:, 0, 0]] = 1
    batch = Batch(faces.clone(), (points + 0.5) / size, torch.ones(400, 1), torch.zeros(400, 6).bool())
    contract = Contract(input_size=size)
    turned, usual = last_layers["with_others"](batch, np.full((3, size, size, 3), 7, np.uint8), contract)
    faceless = (turned.faces == (7 - 127.5) / 127.5).all(dim=3).all(dim=2).all(dim=1)
    assert 8 < int(faceless.sum()) < 40
    assert not usual[faceless].any()
    assert 8 < int((usual == 0).sum() - faceless.sum()) < 40
    assert torch.equal(turned.faces[usual == 1], faces[usual == 1])
    place = turned.faces[~faceless][:, 0].flatten(1).argmax(1)
    expected = torch.stack([place % size, place // size], 1)
    torch.testing.assert_close(turned.landmarks[~faceless, 0] * size - 0.5, expected.float())


@pytest.mark.parametrize(("kind", "loss"), [("pfld-edge-s", "dense"), ("pfld-ghostone", "l1")])
def test_fitting_the_last_layers_lowers_the_error_and_leaves_the_others(
    last_layers: dict[str, Any], write_config: WriteConfig, tmp_path: Path, kind: str, loss: str
) -> None:
    torch.manual_seed(0)
    config = write_config(f"last-{kind}", f'[loss]\nkind = "{loss}"', model=kind)
    network = ModelConfig(kind, 0.25, 32)
    before = build_model(network).eval()
    contract = Contract(model=kind, input_size=32)
    save_checkpoint(tmp_path / "best.pth", Checkpoint(before.state_dict(), network, contract=contract.to_dict()))
    arguments = [str(config), str(tmp_path / "best.pth"), str(tmp_path / "fitted.pth"), "64"]
    arguments += ["--faceless", str(wider(tmp_path))] if loss == "dense" else []
    last_layers["main"](arguments, standalone_mode=False)
    after, fitted = load_model(tmp_path / "fitted.pth")
    assert replace(Contract.from_dict(fitted.contract), nme=None, nme_data="") == contract
    assert {
        name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])
    } == {name for name, _ in before.named_parameters() if name.startswith(("fc.weight", "fc.bias", "fc.refinement"))}
    faces = open_cache(load_config(config), tmp_path / "cache", contract)
    batch = next(iter(training_batches(faces, contract, load_config(config).augment, 32, 0, 0)))
    with torch.no_grad():
        errors = [(net(batch.faces).view(-1, 98, 2) - batch.landmarks).norm(dim=2).mean() for net in (before, after)]
    assert errors[1] < 0.8 * errors[0]


def test_networks_without_a_layer_to_fit_are_refused_in_one_line(
    last_layers: dict[str, Any], write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, wanted = ModelConfig("pfld-edge-s2", 0.25, 32), "neither a refinement nor a last linear layer"
    save_checkpoint(tmp_path / "best.pth", Checkpoint(build_model(network).state_dict(), network))
    for model, message in (("pfld-edge-s2", wanted), ("pfld-ghostone", "holds pfld-edge-s2, the configuration trains")):
        config = write_config("last-refused", model=model)
        with pytest.raises(SystemExit, match=r"^2$"):
            last_layers["main"]([str(config), str(tmp_path / "best.pth"), str(tmp_path / "out.pth")])
        told = capsys.readouterr().err
        assert told.startswith("Error: ")
        assert message in told
        assert told.count("\n") == 1
