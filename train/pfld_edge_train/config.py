"""What a training run is made of, read from a TOML file and saved inside its checkpoints."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pfld_edge_train.augment_config import AugmentConfig
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.loss_config import LossConfig
from pfld_edge_train.optimizer_config import OptimizerConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DataConfig", "TrainConfig", "load_config"]

_TABLES: Mapping[str, type] = MappingProxyType(
    {"augment": AugmentConfig, "loss": LossConfig, "optimizer": OptimizerConfig}
)
"""Parts of a configuration that are tables of their own."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """One source of faces.

    Attributes:
        path: A WFLW folder or a CSV of points, relative to the configuration file.
        images: For a CSV: folder that its image column is relative to; empty for the CSV's own.
        split: For a WFLW folder: which official list.
        group_by: For a CSV: ``image`` or ``person``, what a validation split must not part.
        repeat: How often an epoch shows each face.
        weighted: Whether a CSV's weight column counts; where not, every face weighs 1.
    """

    path: str
    images: str = ""
    split: str = "train"
    group_by: str = "image"
    repeat: int = 1
    weighted: bool = True


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        model: Kind of network, see `pfld_edge_train.models.MODEL_KINDS`.
        width_factor: Multiplies the channels.
        input_size: Side of the network's input in pixels.
        conv_branches: Convolution branches of each MobileOne block; the published PFLD-GhostOne has 6.
        data: Where the faces come from.
        augment: Strength of the augmentation.
        loss: What is minimised.
        optimizer: How weights move.
        epochs: Passes over the training faces.
        batch_size: Faces a step.
        validation: Share of the groups (people or photographs) that are held out.
        seed: Of everything random.
        bf16: Run the network in bfloat16; weights, loss and statistics stay in float32.
        compile: Let `torch.compile` make the step's kernels; the first step then takes minutes.
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        checkpoint_steps: Steps between two checkpoints within an epoch; 0: only after each epoch.
        tensorboard: Write TensorBoard's events too.
        trained_on: One line for the contract.
    """

    model: str = "pfld-edge-s"
    width_factor: float = 1.0
    input_size: int = 112
    conv_branches: int = 1
    data: tuple[DataConfig, ...] = ()
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 60
    batch_size: int = 64
    validation: float = 0.05
    seed: int = 0
    bf16: bool = False
    compile: bool = False
    device: str = "auto"
    checkpoint_steps: int = 0
    tensorboard: bool = False
    trained_on: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as they are saved in checkpoints."""
        record = asdict(self)
        record["data"] = [dict(item) for item in record["data"]]
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any], where: str = "configuration") -> "TrainConfig":
        """Rebuild a configuration.

        Raises:
            TrainConfigError: A key is unknown or a value has the wrong type.
        """
        values = dict(_known(cls, record, where))
        values["data"] = tuple(
            DataConfig(**_known(DataConfig, item, f"{where}, data")) for item in values.get("data", [])
        )
        for name, table in _TABLES.items():
            values[name] = _table(table, values.get(name, {}), f"{where}, {name}")
        try:
            config = cls(**values)
        except TypeError as error:
            raise TrainConfigError(f"{where}: {error}") from error
        _check(config, where)
        return config


def load_config(path: Path) -> TrainConfig:
    """Read a TOML configuration; data paths become absolute, as seen from the file.

    Raises:
        TrainConfigError: The file is missing, not TOML, or says something impossible.
    """
    if not path.is_file():
        raise TrainConfigError(f"{path}: no such configuration file")
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainConfigError(f"{path}: not valid TOML: {error}") from error
    for item in record.get("data", []):
        for name in ("path", "images"):
            if item.get(name):
                item[name] = str((path.parent / item[name]).resolve())
    return TrainConfig.from_dict(record, str(path))


def _known(cls: type, record: object, where: str) -> dict[str, Any]:
    """Check that a table has only the class's keys, with values of their types."""
    if not isinstance(record, dict):
        raise TrainConfigError(f"{where}: expected a table, found {type(record).__name__}")
    types = {item.name: item.type for item in fields(cls)}
    for name, value in record.items():
        if name not in types:
            raise TrainConfigError(f"{where}: unknown key {name!r}; known: {', '.join(types)}")
        expected = types[name]
        if expected in (int, float, str, bool):
            numeric = expected is float and isinstance(value, int) and not isinstance(value, bool)
            if type(value) is not expected and not numeric:
                raise TrainConfigError(f"{where}: {name} must be {expected.__name__}, found {value!r}")
    return record


def _table(table: type, record: object, where: str) -> Any:  # noqa: ANN401 - an instance of the class that is asked for
    try:
        return table(**_known(table, record, where))
    except TrainConfigError as error:
        raise error if str(error).startswith(where) else TrainConfigError(f"{where}: {error}") from error


def _check(config: TrainConfig, where: str) -> None:
    for name in ("epochs", "batch_size"):
        if getattr(config, name) <= 0:
            raise TrainConfigError(f"{where}: {name} must be positive, found {getattr(config, name)}")
    if config.checkpoint_steps < 0:
        raise TrainConfigError(f"{where}: checkpoint_steps must be 0 or positive, found {config.checkpoint_steps}")
    if config.device not in ("auto", "cpu", "cuda"):
        raise TrainConfigError(f"{where}: device must be auto, cpu or cuda, found {config.device!r}")
    if not config.data:
        raise TrainConfigError(f"{where}: no data; add a [[data]] table with a path")
    if not 0 < config.validation < 0.5:
        raise TrainConfigError(f"{where}: validation must be a share between 0 and 0.5, found {config.validation}")
