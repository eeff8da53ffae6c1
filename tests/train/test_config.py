"""Training configurations: what is read, and what is refused with a sentence."""

import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfld_edge_train.config import AugmentConfig, DataConfig, OptimizerConfig, TrainConfig, load_config
from pfld_edge_train.errors import TrainConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "train/configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    config = load_config(path)
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3", "no data"),
        ("epoch = 3", "unknown key epoch; known: model"),
        ("epochs = 'many'", "epochs should be a valid integer, found 'many'"),
        ("epochs = true", "epochs should be a valid integer, found True"),
        ("bf16 = 1", "bf16 should be a valid boolean, found 1"),
        ("epochs = 0\n[[data]]\npath = 'a.csv'", "epochs should be greater than or equal to 1, found 0"),
        ("seed = -1\n[[data]]\npath = 'a.csv'", "seed should be greater than or equal to 0, found -1"),
        (
            "checkpoint_minutes = nan\n[[data]]\npath = 'a.csv'",
            "checkpoint_minutes should be a finite number",
        ),
        ("bf16 = true\nfp16 = true\n[[data]]\npath = 'a.csv'", "bf16 and fp16 exclude each other"),
        ("[[data]]\nfolder = 'a'", "unknown key data.0.folder; known: path"),
        ("[data]\npath = 'a.csv'", r"\[data\] must read \[\[data\]\], with two brackets"),
        ("data = 'a.csv'", "data should be a valid array, found 'a.csv'"),
        ("data = ['a.csv']", "data.0 should be an object, found 'a.csv'"),
        ("[[data]]\nsplit = 'train'", "data.0.path: Field required"),
        ("[[data]]\npath = 'a'\nsplit = 'test'", "no run learns from a test list"),
        ("[[data]]\npath = 'a'\ngroup_by = 'name'", "data.0.group_by should be 'image' or 'person', found 'name'"),
        ("[[data]]\npath = 'a'\nrepeat = 0", "data.0.repeat should be greater than or equal to 1, found 0"),
        ("[[data]]\npath = 'a'\npose_balance = 5", "pose_balance should be less than or equal to 4, found 5"),
        ("optimizer = 1\n[[data]]\npath = 'a'", "optimizer should be an object, found 1"),
        ("[[data]]\npath = 'a'\n[optimizer]\nlearning_rate = nan", "optimizer.learning_rate should be a finite number"),
        ("epochs = ", "not valid TOML"),
        ("validation = 0.9\n[[data]]\npath = 'a.csv'", "validation should be less than 0.5, found 0.9"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(TrainConfigError, match=message):
        load_config(tmp_path / "run.toml")


def test_a_configuration_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("epochs = 7\n[[data]]\npath = 'a.csv'", encoding="utf-8-sig")
    assert load_config(tmp_path / "run.toml").epochs == 7


def test_data_paths_are_seen_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[[data]]\npath = 'faces/set.csv'")
    assert load_config(tmp_path / "run.toml").data[0].path == str((tmp_path / "faces/set.csv").resolve())


ANYTHING = st.one_of(
    st.integers(), st.floats(), st.text(max_size=5), st.booleans(), st.lists(st.integers(), max_size=2), st.just({})
)


@given(st.data())
def test_any_value_of_any_key_is_taken_or_refused_with_a_sentence(data: st.DataObject) -> None:
    default = TrainConfig(data=(DataConfig("a.csv"),)).to_dict()
    table = data.draw(
        st.sampled_from([name for name, value in default.items() if isinstance(value, dict)] + ["", "data"])
    )
    part = default["data"][0] if table == "data" else default[table] if table else default
    key = data.draw(st.sampled_from(sorted(part)))
    part[key] = data.draw(ANYTHING)
    try:
        config = TrainConfig.from_dict(default, "run.toml")
    except TrainConfigError as error:
        message = str(error)
    else:
        message = f"run.toml {key}"
        assert TrainConfig.from_dict(config.to_dict()) == config
    assert message.startswith("run.toml")
    assert key in message or f"run.toml, {table}" in message


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("jpeg", 1.5, "less than or equal to 1"),
        ("noise", -1, "greater than or equal to 0"),
        ("shear", 1, "less than or equal to 0.9"),
        ("gamma", float("nan"), "a finite number"),
    ],
)
def test_a_senseless_augmentation_strength_is_named(name: str, value: float, allowed: str) -> None:
    with pytest.raises(TrainConfigError, match=f"augment.{name} should be {allowed}, found {value}"):
        TrainConfig.from_dict({"data": [{"path": "a.csv"}], "augment": {name: value}})


def test_the_page_on_augmentation_names_every_key_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs/augmentation.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", text, re.MULTILINE))
    assert {name: float(value) for name, value in rows.items()} == asdict(AugmentConfig())


def test_the_page_on_training_lists_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    for table in (TrainConfig, DataConfig, OptimizerConfig):
        for item in fields(table):
            assert f"`{item.name}`" in page or f"`[{item.name}]`" in page or f"`[[{item.name}]]`" in page, item.name
