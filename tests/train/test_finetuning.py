"""Fine-tuning: what a new network takes from a checkpoint, what stays as it was, and how fast the rest moves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfld_edge_calib import portraits
from pfld_edge_runtime import (
    FIVE_POINTS,
    IBUG_68,
    WFLW_98,
    Contract,
    CropRule,
    LandmarkError,
    LandmarkScheme,
    five_points,
    landmarks_68,
    predict_with_mirror,
)
from pfld_edge_runtime.arrays import Float32Array
from pfld_edge_runtime.detection.detector import scheme_box_map
from pfld_edge_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pfld_edge_train.config import FinetuneConfig, LandmarksConfig, TrainConfig, landmark_scheme
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.fit import fit
from pfld_edge_train.learner import freeze_layers, layer_factors, parameter_groups, training_mode
from pfld_edge_train.models import MODEL_KINDS, ModelConfig, build_model
from pfld_edge_train.run_log import Callback, EpochResult
from pfld_edge_train.run_state import RunState, new_run, resumed_run, save_run

TINY = {"width_factor": 0.25, "input_size": 32, "batch_size": 2, "validation": 0.49, "epochs": 2}
NETWORK = ModelConfig("pfld-edge-s1", width_factor=0.25, input_size=32)


def saved(path: Path, scheme: LandmarkScheme | None = WFLW_98, config: ModelConfig = NETWORK) -> torch.nn.Module:
    """Save a random network; without a scheme as another project would, without contract."""
    torch.manual_seed(7)
    network = build_model(config if scheme is None else replace(config, num_landmarks=scheme.num_landmarks))
    if scheme is None:
        torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, path)
        return network
    contract = Contract(model=config.kind, input_size=config.input_size, landmarks=scheme).to_dict()
    save_checkpoint(
        path, Checkpoint(network.state_dict(), replace(config, num_landmarks=len(scheme.names)), contract=contract)
    )
    return network


def config(**changes: object) -> TrainConfig:
    return TrainConfig.from_dict({**TINY, "data": [{"path": "faces.csv"}], **changes})


def answers(network: torch.nn.Module) -> Float32Array:
    """Landmarks of four random crops."""
    crops = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return np.asarray(network.eval()(crops).view(4, -1, 2).numpy(), np.float32)


@pytest.mark.parametrize(("scheme", "mapping"), [(IBUG_68, landmarks_68), (FIVE_POINTS, five_points)])
def test_a_98_point_network_becomes_one_of_68_or_5_that_answers_as_the_runtime_maps_its_points(
    tmp_path: Path, scheme: LandmarkScheme, mapping: object
) -> None:
    source = saved(tmp_path / "wflw.pth")
    state = new_run(config(landmarks={"scheme": scheme.name}), tmp_path / "wflw.pth")
    assert callable(mapping)
    np.testing.assert_allclose(answers(state.learner.model), mapping(answers(source)), atol=1e-6)
    assert state.contract.landmarks == scheme
    assert f"all {scheme.num_landmarks} points follow from wflw-98" in state.origin


@pytest.mark.parametrize("kind", ["pfld-edge-s1", "pfld-edge-m"])  # a linear layer, heat maps
def test_points_of_the_same_name_keep_their_rows_and_others_start_fresh(tmp_path: Path, kind: str) -> None:
    source = saved(tmp_path / "wflw.pth", config=replace(NETWORK, kind=kind))
    names = [WFLW_98.names[72], "forehead", WFLW_98.names[60]]
    own = {"scheme": "mine", "names": names, "mirror": [2, 1, 0], "normalizing_points": [0, 2]}
    state = new_run(config(model=kind, landmarks=own), tmp_path / "wflw.pth")
    np.testing.assert_allclose(answers(state.learner.model)[:, ::2], answers(source)[:, [72, 60]], atol=1e-6)
    assert "2 of 3 points are wflw-98's of the same name; 1 start fresh" in state.origin


def test_a_checkpoint_of_the_network_that_had_the_name_first_decides(tmp_path: Path) -> None:
    old = replace(load_checkpoint_of(tmp_path / "old.pth"), model=replace(NETWORK, kind="pfld-edge-s"))
    save_checkpoint(tmp_path / "old.pth", old)  # as versions before heat maps wrote it
    state = new_run(config(model="pfld-edge-s"), tmp_path / "old.pth")
    assert state.config.model == "pfld-edge-s1"
    save_run(state, tmp_path / "last.pth")
    assert resumed_run(config(model="pfld-edge-s"), tmp_path / "last.pth").config == state.config
    with pytest.raises(TrainConfigError, match=r"its kind is pfld-edge-s1.*start from it with model = 'pfld-edge-s1'"):
        new_run(config(model="pfld-edge-m"), tmp_path / "old.pth")


def load_checkpoint_of(path: Path) -> Checkpoint:
    """A new checkpoint of `NETWORK`."""
    saved(path)
    return load_checkpoint(path)


def test_numbered_points_of_another_scheme_are_not_taken_for_the_same(tmp_path: Path) -> None:
    old = landmark_scheme(LandmarksConfig("old", points=4, normalizing_points=(0, 1)))
    saved(tmp_path / "old.pth", old)
    own = {"scheme": "new", "points": 4, "mirror": [1, 0, 2, 3], "normalizing_points": [0, 1]}
    assert "no point; 4 start fresh" in new_run(config(landmarks=own), tmp_path / "old.pth").origin
    own["scheme"] = "old"
    assert "all 4 points" in new_run(config(landmarks=own), tmp_path / "old.pth").origin


def test_another_projects_checkpoint_is_a_start(tmp_path: Path) -> None:
    source = saved(tmp_path / "foreign.pth", None)
    state = new_run(config(), tmp_path / "foreign.pth")
    np.testing.assert_array_equal(answers(state.learner.model), answers(source))
    assert "from the weights of foreign.pth; last layer: all 98 points" in state.origin


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    average = {name: value + 1 if value.is_floating_point() else value for name, value in checkpoint.weights.items()}
    save_checkpoint(tmp_path / "b.pth", replace(checkpoint, ema_weights=average))
    state = new_run(config(), tmp_path / "b.pth")
    assert torch.equal(state.learner.model.state_dict()["fc.bias"], average["fc.bias"])
    assert "averaged weights of b.pth" in state.origin


def test_a_start_of_another_shape_is_refused_with_the_way_out(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    with pytest.raises(
        TrainConfigError, match=r"its width_factor is 0.25, .* asks for 0.5: start .* width_factor = 0.25"
    ):
        new_run(config(width_factor=0.5), tmp_path / "a.pth")
    fused = replace(NETWORK, fused=True)
    saved(tmp_path / "fused.pth", config=fused)
    with pytest.raises(TrainConfigError, match=r"fused = true in \[finetune\]"):
        new_run(config(), tmp_path / "fused.pth")
    state = new_run(config(finetune={"fused": True}), tmp_path / "fused.pth")
    assert not [module for module in state.learner.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def faces_csv(folder: Path, scheme: LandmarkScheme, points: int) -> Path:
    """The two portraits with some of their points, each under the other's eyes: their groups part at seed 0."""
    header = ["image", *(f"{axis}{i}" for i in range(points) for axis in "xy")]
    lines = [",".join(header)]
    for face in portraits(Contract(landmarks=scheme)):
        assert face.landmarks is not None
        (folder / face.image.name).symlink_to(face.image)
        lines.append(",".join([face.image.name, *(f"{value:.2f}" for value in face.landmarks[:points].ravel())]))
    (folder / "faces.csv").write_text("\n".join(lines))
    return folder / "faces.csv"


class Stopper(Callback):
    def result(self, _result: EpochResult) -> None:
        raise KeyboardInterrupt


def run(state: RunState, out: Path, stop: bool = False) -> None:
    fit(state, out, out.parent / "cache", Stopper() if stop else None)


def test_frozen_layers_keep_every_bit_their_statistics_too_and_the_rest_moves_through_a_resume(tmp_path: Path) -> None:
    source = saved(tmp_path / "wflw.pth").state_dict()
    data = [{"path": str(faces_csv(tmp_path, FIVE_POINTS, 5)), "repeat": 4}]
    settings = config(
        data=data,
        landmarks={"scheme": "five-points", "margin": 2.4},
        finetune={"freeze": ["blocks.0", "head"], "backbone_rate": 0.5, "statistics_faces": 0},
    )
    run(new_run(settings, tmp_path / "wflw.pth"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(new_run(settings, tmp_path / "wflw.pth"), tmp_path / "cut", stop=True)
    run(resumed_run(settings, tmp_path / "cut/last.pth"), tmp_path / "cut")
    whole, cut = (load_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "cut"))
    assert all(torch.equal(whole.weights[name], cut.weights[name]) for name in whole.weights)
    for weights in (whole.weights, whole.ema_weights or {}):
        for name, value in weights.items():
            if name.startswith(("blocks.0.", "head.")):
                assert torch.equal(value, source[name]), name
            elif value.is_floating_point() and not name.startswith("fc."):
                assert not torch.equal(value, source[name]), name
    assert whole.contract is not None
    contract = Contract.from_dict(whole.contract)
    assert (contract.landmarks, contract.crop) == (FIVE_POINTS, CropRule(margin=2.4))


class Notes(Callback):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.results: list[EpochResult] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def result(self, result: EpochResult) -> None:
        self.results.append(result)


def test_few_faces_leave_batch_norms_statistics_alone_through_a_resume(tmp_path: Path) -> None:
    source = saved(tmp_path / "wflw.pth").state_dict()
    data = [{"path": str(faces_csv(tmp_path, WFLW_98, 98)), "repeat": 4}]
    settings = config(data=data)
    with pytest.raises(KeyboardInterrupt):
        run(new_run(settings, tmp_path / "wflw.pth"), tmp_path / "run", stop=True)
    run(resumed_run(settings, tmp_path / "run/last.pth"), tmp_path / "run")
    for name, value in load_checkpoint(tmp_path / "run/last.pth").weights.items():
        assert torch.equal(value, source[name]) == ("running_" in name or "num_batches" in name), name


def test_nothing_worse_than_the_start_is_called_best(tmp_path: Path) -> None:
    source = saved(tmp_path / "wflw.pth").state_dict()
    data = [{"path": str(faces_csv(tmp_path, WFLW_98, 98)), "repeat": 4}]
    notes = Notes()
    # So large a rate makes every epoch worse than the random start, whose points lie in the middle.
    spoiling = config(data=data, optimizer={"learning_rate": 0.5, "ema_decay": 0.0})
    fit(new_run(spoiling, tmp_path / "wflw.pth"), tmp_path / "run", tmp_path / "cache", notes)
    assert "before training: validation NME" in notes.texts[0]
    assert "fewer than 1,000 faces: BatchNorm keeps" in notes.texts[1]
    assert [result.best for result in notes.results] == [False, False]
    best = load_checkpoint(tmp_path / "run/best.pth")
    assert all(torch.equal(value, source[name]) for name, value in best.weights.items())


def test_backbone_stands_for_all_but_the_last_layer() -> None:
    network = build_model(NETWORK)
    freeze_layers(network, ["backbone"])
    assert [name for name, value in network.named_parameters() if value.requires_grad] == ["fc.weight", "fc.bias"]
    training_mode(network)
    assert [name for name, module in network.named_modules() if module.training] == ["", "fc"]


def test_names_that_freeze_nothing_or_all_are_refused() -> None:
    with pytest.raises(TrainConfigError, match="no layer 'block'; the network has blocks, head, fc"):
        freeze_layers(build_model(NETWORK), ["block"])
    with pytest.raises(TrainConfigError, match="nothing is left to train"):
        freeze_layers(build_model(NETWORK), ["backbone", "fc"])


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_rates_fall_from_the_last_layer_to_the_first_and_cover_every_parameter_once(kind: str) -> None:
    network = build_model(ModelConfig(kind, width_factor=0.25, input_size=32))
    factors = layer_factors(network, FinetuneConfig(backbone_rate=0.5, layer_decay=0.9))
    assert list(factors) == [name for name, _ in network.named_parameters()]
    values = list(factors.values())
    assert values == sorted(values)  # networks name their layers from the input on
    assert {factor for name, factor in factors.items() if name.startswith("fc.")} == {1.0}
    steps = sorted(set(values), reverse=True)
    assert steps[1:] == pytest.approx([0.5 * 0.9 ** (i + 1) for i in range(len(steps) - 1)])
    assert len(steps) >= 9
    groups = parameter_groups(network, 0.1, FinetuneConfig(layer_decay=0.9))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())
    slow = {id(value) for group in groups if group["rate"] == 0.1 for value in group["params"]}
    assert slow == {id(value) for name, value in network.named_parameters() if ".refinement." in name}
    assert all((group["weight_decay"] > 0) == (parameter.ndim > 1) for group in groups for parameter in group["params"])


def test_without_fine_tuning_all_layers_learn_alike() -> None:
    groups = parameter_groups(build_model(NETWORK), 0.1, FinetuneConfig())
    assert [(group["rate"], group["weight_decay"]) for group in groups] == [(1.0, 0.1), (1.0, 0.0)]


def test_points_without_a_mirror_image_train_unmirrored_and_say_so(tmp_path: Path) -> None:
    data = [{"path": str(faces_csv(tmp_path, FIVE_POINTS, 3)), "repeat": 4}]
    own = {"scheme": "three", "points": 3, "normalizing_points": [0, 1]}
    with pytest.raises(TrainConfigError, match=r"give mirror, or set flip = 0 in \[augment\]"):
        config(data=data, landmarks=own)
    run(new_run(config(data=data, landmarks=own, augment={"flip": 0}, epochs=1)), tmp_path / "run")
    contract = Contract.from_dict(load_checkpoint(tmp_path / "run/last.pth").contract)
    assert not contract.landmarks.has_mirror

    class Network:
        """Never asked."""

        def __init__(self) -> None:
            self.contract = contract

    with pytest.raises(LandmarkError, match="'three' doesn't say which points the mirror image has"):
        predict_with_mirror(Network(), np.zeros((9, 9, 3), np.uint8), [[0, 0, 5, 5]])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"scheme": "mine"},
            "unknown scheme 'mine'; known: wflw-98, ibug-68, five-points. One of your own needs points",
        ),
        ({"scheme": "ibug-68", "points": 68}, "scheme 'ibug-68' is known"),
        ({"scheme": "mine", "points": 3, "names": ["a", "b"]}, "3 points need 3 names, all different; found 2"),
        ({"scheme": "mine", "points": 3, "normalizing_points": [0, 3]}, "two of the points 0 to 2"),
        ({"scheme": "mine", "points": 3, "mirror": [0, 1], "normalizing_points": [0, 1]}, "each of 0 to 2 once"),
        (
            {"scheme": "mine", "points": 3, "mirror": [1, 2, 0], "normalizing_points": [0, 1]},
            "0 becomes 1, which becomes 2",
        ),
        ({"scheme": "mine", "points": 3, "mirror": ["a"]}, "landmarks.mirror.0 should be a valid integer"),
        ({"margin": 40.0}, "margin: crop margin must be from 0.1 to 10"),
        ({"scheme": "mine", "points": 3, "normalizing_points": [0, 1]}, "doesn't say which point each becomes"),
    ],
)
def test_a_scheme_that_contradicts_itself_is_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(TrainConfigError, match=r"configuration.*landmarks.*") as caught:
        config(landmarks=table)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"freeze": 3}, "freeze should be a valid array, found 3"),
        ({"backbone_rate": 0.0}, "backbone_rate should be greater than 0, found 0.0"),
        ({"layer_decay": 2}, "layer_decay should be less than or equal to 1, found 2"),
        ({"rate": 1}, "unknown key finetune.rate"),
    ],
)
def test_fine_tuning_that_means_nothing_is_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(TrainConfigError, match=message):
        config(finetune=table)


def test_the_configuration_survives_its_checkpoint() -> None:
    whole = config(
        landmarks={"scheme": "mine", "points": 2, "mirror": [1, 0], "normalizing_points": [0, 1]},
        finetune={"freeze": ["blocks.0"]},
    )
    assert TrainConfig.from_dict(whole.to_dict()) == whole


def test_a_detectors_box_becomes_that_of_the_networks_points() -> None:
    contract = Contract(landmarks=FIVE_POINTS, crop=CropRule(margin=2.4))
    for face, own in zip(portraits(), portraits(contract), strict=True):
        (box,) = scheme_box_map(contract)(face.bbox_xyxy[None])
        side = np.ptp(own.bbox_xyxy.reshape(2, 2), axis=0).max()
        # As far off as detectors' boxes are.
        assert np.abs(box - own.bbox_xyxy).max() < 0.2 * side
    same = scheme_box_map(Contract(crop=CropRule(margin=1.5)))
    np.testing.assert_array_equal(same(face.bbox_xyxy[None])[0], face.bbox_xyxy)
    mine = landmark_scheme(LandmarksConfig("mine", points=2, normalizing_points=(0, 1)))
    (box,) = scheme_box_map(Contract(landmarks=mine, crop=CropRule(margin=2.4)))(np.array([[0.0, 0.0, 80.0, 100.0]]))
    np.testing.assert_allclose(box, [20, 25, 60, 75])
