"""What a training run is made of, read from a TOML file and saved inside its checkpoints."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pfld_edge_train.augment_config import AugmentConfig
from pfld_edge_train.config_table import checked_table, read_table
from pfld_edge_train.data_config import DataConfig
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.finetune_config import FinetuneConfig
from pfld_edge_train.landmark_scheme_config import KNOWN_SCHEMES, LandmarksConfig
from pfld_edge_train.loss_config import LossConfig
from pfld_edge_train.optimizer_config import OptimizerConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DataConfig", "TrainConfig", "load_config"]

_TABLES: Mapping[str, type] = MappingProxyType(
    {
        "landmarks": LandmarksConfig,
        "augment": AugmentConfig,
        "loss": LossConfig,
        "optimizer": OptimizerConfig,
        "finetune": FinetuneConfig,
    }
)
"""Parts of a configuration that are tables of their own."""

_LOWEST: Mapping[str, int] = MappingProxyType(
    {"epochs": 1, "batch_size": 1, "seed": 0, "hard_views": 0, "checkpoint_steps": 0, "checkpoint_minutes": 0}
)

_DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        model: Kind of network, see `pfld_edge_train.models.MODEL_KINDS`.
        width_factor: Multiplies the channels.
        input_size: Side of the network's input in pixels.
        conv_branches: Convolution branches of each MobileOne block; the published PFLD-GhostOne has 6.
        landmarks: Which points of a face it finds.
        data: Where the faces come from.
        augment: Strength of the augmentation.
        loss: What is minimised.
        optimizer: How weights move.
        finetune: How the weights that a run starts from go on learning.
        epochs: Passes over the training faces.
        batch_size: Faces a step.
        validation: Share of the groups (people or photographs) that are held out.
        seed: Of everything random.
        hard_views: How often a validation face is looked at changed, beside once as it is; see `validation_batches`.
        bf16: Run the network in bfloat16; weights, loss and statistics stay in float32.
        fp16: The same in float16, with a scaled loss, for GPUs that are slow in bfloat16.
        compile: Let `torch.compile` make the step's kernels; the first step then takes minutes.
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        checkpoint_steps: Steps between two checkpoints within an epoch; 0: by the clock alone.
        checkpoint_minutes: Minutes between two checkpoints within an epoch; 0: never by the clock.
        tensorboard: Write TensorBoard's events too.
        trained_on: One line for the contract.

    Raises:
        TrainConfigError: A value is out of range, or two contradict each other.
    """

    model: str = "pfld-edge-s"
    width_factor: float = 1.0
    input_size: int = 112
    conv_branches: int = 1
    landmarks: LandmarksConfig = field(default_factory=LandmarksConfig)
    data: tuple[DataConfig, ...] = ()
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    epochs: int = 60
    batch_size: int = 64
    validation: float = 0.05
    seed: int = 0
    hard_views: int = 1
    bf16: bool = False
    fp16: bool = False
    compile: bool = False
    device: str = "auto"
    checkpoint_steps: int = 0
    checkpoint_minutes: float = 5.0
    tensorboard: bool = False
    trained_on: str = ""

    def __post_init__(self) -> None:
        """Check the values; whether the network can be built is for `ModelConfig` to say."""
        for name, lowest in _LOWEST.items():
            if not lowest <= getattr(self, name) < float("inf"):
                raise TrainConfigError(f"{name} must be {lowest} or more, found {getattr(self, name)}")
        if self.seed >= 2**32:
            raise TrainConfigError(f"seed must be below 2**32, found {self.seed}")
        if not 0 < self.validation < 0.5:
            raise TrainConfigError(f"validation must be a share between 0 and 0.5, found {self.validation}")
        if self.device not in _DEVICES:
            raise TrainConfigError(f"unknown device {self.device!r}; known: {', '.join(_DEVICES)}")
        if self.augment.flip and self.landmarks.scheme not in KNOWN_SCHEMES and not self.landmarks.mirror:
            raise TrainConfigError(
                "faces are mirrored in training, and [landmarks] doesn't say which point each becomes: give mirror, or "
                "set flip = 0 in [augment]"
            )
        if self.bf16 and self.fp16:
            raise TrainConfigError("bf16 and fp16 exclude each other; bf16 is the safer one where the GPU has it")

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as they are saved in checkpoints."""
        record = asdict(self)
        record["data"] = [dict(item) for item in record["data"]]
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any], where: str = "configuration") -> "TrainConfig":
        """Rebuild a configuration.

        Raises:
            TrainConfigError: A key is unknown, or a value has the wrong type or is out of range.
        """
        values = dict(checked_table(cls, record, where))
        sources = values.get("data", [])
        if not isinstance(sources, list) or not sources:
            raise TrainConfigError(f"{where}: no data; add a [[data]] table with a path")
        values["data"] = tuple(read_table(DataConfig, item, f"{where}, data") for item in sources)
        for name, table in _TABLES.items():
            values[name] = read_table(table, values.get(name, {}), f"{where}, {name}")
        return read_table(cls, values, where)


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
    sources = record.get("data", [])
    for item in sources if isinstance(sources, list) else []:
        for name in ("path", "images"):
            if isinstance(item, dict) and isinstance(item.get(name), str) and item[name]:
                item[name] = str((path.parent / item[name]).resolve())
    return TrainConfig.from_dict(record, str(path))
