"""Training configurations: what is read, and what is refused with a sentence."""

from pathlib import Path

import pytest

from pfld_edge_train.config import TrainConfig, load_config
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
        ("epoch = 3", "unknown key 'epoch'; known: model"),
        ("epochs = 'many'", "epochs must be int, found 'many'"),
        ("epochs = 0\n[[data]]\npath = 'a.csv'", "epochs must be positive, found 0"),
        ("[[data]]\nfolder = 'a'", "unknown key 'folder'"),
        ("epochs = ", "not valid TOML"),
        ("validation = 0.9\n[[data]]\npath = 'a.csv'", "validation must be a share between 0 and 0.5"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(TrainConfigError, match=message):
        load_config(tmp_path / "run.toml")


def test_data_paths_are_seen_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[[data]]\npath = 'faces/set.csv'")
    assert load_config(tmp_path / "run.toml").data[0].path == str((tmp_path / "faces/set.csv").resolve())
