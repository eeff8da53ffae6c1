"""The configuration of a training run: the tables of its TOML file, also saved in checkpoints.

Each table is a pydantic dataclass; ``docs/training.md`` and the pages it names describe its keys. A wrong value is
reported in one line, in pydantic's words.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pfld_edge_runtime import WFLW_98, LandmarkScheme, ModelContractError
from pfld_edge_runtime.contract import KNOWN_SCHEMES, CropRule
from pfld_edge_train.errors import TrainConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Strict: in Python, true is a whole number; in a configuration it is a mistake.
_TABLE = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountFromZero = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, config=_TABLE)
class DataConfig:
    """One source of faces, a ``[[data]]`` table; see ``docs/training.md``."""

    path: str
    scheme: Literal["", "ibug-68"] = ""
    images: str = ""
    split: str = "train"
    group_by: Literal["image", "person"] = "image"
    repeat: Count = 1
    pose_balance: Annotated[float, Field(ge=0, le=4)] = 0.0
    weighted: bool = True

    def __post_init__(self) -> None:
        if not self.path:
            raise TrainConfigError("path is empty; it names a WFLW folder, a prepared folder or a CSV of points")
        if self.split != "train":
            raise TrainConfigError(f"split must be 'train', found {self.split!r}: no run learns from a test list")


@dataclass(frozen=True, config=_TABLE)
class LandmarksConfig:
    """The points of a face that the network finds, in the order of the CSV's columns; see ``docs/fine-tuning.md``.

    `scheme` is one of `KNOWN_SCHEMES`, or a name of your own, which the other settings describe. A `margin` of 1.2
    suits points from the brows to the chin; points that span less of a face need more.
    """

    scheme: str = WFLW_98.name
    points: int = 0
    names: tuple[str, ...] = ()
    mirror: tuple[int, ...] = ()
    normalizing_points: tuple[int, ...] = ()
    margin: float = 1.2

    def __post_init__(self) -> None:
        landmark_scheme(self)
        try:
            CropRule(margin=self.margin)
        except ModelContractError as error:
            raise TrainConfigError(f"margin: {error}") from error


@dataclass(frozen=True, config=_TABLE)
class AugmentConfig:
    """Strength of the augmentation; 0 turns a part off. See ``docs/augmentation.md``.

    `shift` and `scale` follow measured errors of detectors.
    """

    rotation: Annotated[float, Field(ge=0, le=180)] = 15.0
    shear: Annotated[float, Field(ge=0, le=0.9)] = 0.15
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.035
    scale: Annotated[float, Field(ge=0, le=0.5)] = 0.065
    flip: Share = 0.5
    antialias: Share = 0.5
    light: Share = 0.5
    darkness: Share = 0.04
    gamma: Annotated[float, Field(ge=0, le=2)] = 0.4
    temperature: Share = 0.12
    color: Share = 0.12
    gray: Share = 0.1
    blur: Share = 0.12
    defocus: Share = 0.12
    low_resolution: Share = 0.25
    noise: Annotated[float, Field(ge=0, le=128)] = 12.0
    jpeg: Share = 0.25
    occlusion: Share = 0.25
    mask: Share = 0.04
    glasses: Share = 0.04


HARD_VIEW = AugmentConfig(
    rotation=20.0,
    shear=0.25,
    light=0.7,
    darkness=0.1,
    gamma=0.6,
    blur=0.2,
    defocus=0.2,
    low_resolution=0.35,
    noise=16.0,
    jpeg=0.35,
    occlusion=0.4,
    mask=0.08,
    glasses=0.08,
)
"""Augmentation of validation's hard views. It never depends on a run's own strengths, so that runs stay comparable."""


@dataclass(frozen=True, config=_TABLE)
class LossConfig:
    """The loss on landmarks, in pixels of the network's input. See `pfld_edge_train.losses` and ``docs/losses.md``.

    `adaptive_wing_alpha` is one more than the exponent; above 2, or the gradient at zero is infinite. ``dense`` is for
    networks with heat maps, see `pfld_edge_train.dense_loss`.
    """

    kind: Literal["wing", "adaptive-wing", "soft-wing", "smooth-l1", "l2", "l1", "dense"] = "wing"
    wing_w: Positive = 10.0
    wing_epsilon: Positive = 2.0
    adaptive_wing_omega: Positive = 14.0
    adaptive_wing_theta: Positive = 10.0
    adaptive_wing_epsilon: Positive = 2.0
    adaptive_wing_alpha: Annotated[float, Field(gt=2)] = 2.1
    soft_wing_omega1: Positive = 2.0
    soft_wing_omega2: Positive = 20.0
    soft_wing_epsilon: Positive = 2.0
    smooth_l1_beta: Positive = 1.0
    dense_error: NotNegative = 10.0
    dense_lid_weight: Positive = 2.2
    pose_weight: Literal["none", "paper", "deviation", "turned"] = "none"
    eye_normalized: bool = False
    attribute_weight: Literal["none", "paper", "balanced"] = "none"
    auxiliary_weight: NotNegative = 0.0

    def __post_init__(self) -> None:
        if self.kind == "dense" and (self.needs_pose or self.eye_normalized or self.attribute_weight != "none"):
            raise TrainConfigError(
                "kind 'dense' weighs landmarks by their weights alone: leave pose_weight, attribute_weight, "
                "auxiliary_weight and eye_normalized out"
            )
        if self.pose_weight == "deviation" and self.auxiliary_weight == 0:
            raise TrainConfigError(
                "pose_weight 'deviation' needs an auxiliary_weight above 0: nothing else trains the predicted angles"
            )

    @property
    def needs_auxiliary(self) -> bool:
        """Whether the auxiliary network, which predicts the head's angles, is trained."""
        return self.pose_weight in ("paper", "deviation") or self.auxiliary_weight > 0

    @property
    def needs_pose(self) -> bool:
        """Whether the true angles are needed, which are known for the WFLW scheme only."""
        return self.needs_auxiliary or self.pose_weight != "none"


@dataclass(frozen=True, config=_TABLE)
class OptimizerConfig:
    """The optimizer and its schedule: a linear warm-up to the peak, then half a cosine to zero, or the peak.

    `weight_decay` acts on weights with more than one axis, `clip_norm` limits the gradient's norm, `ema_decay` is that
    of the averaged weights, which are evaluated and shipped.
    """

    kind: Literal["adamw", "adam", "muon"] = "adamw"
    learning_rate: Positive = 2e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: NotNegative = 1.0
    weight_decay: NotNegative = 1e-4
    clip_norm: Positive = 5.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, config=_TABLE)
class FinetuneConfig:
    """Training that starts from a checkpoint; see ``docs/fine-tuning.md``.

    `layer_decay` follows Clark et al., "ELECTRA", ICLR 2020, table 6.
    """

    freeze: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple)] = ()
    backbone_rate: Factor = 1.0
    layer_decay: Factor = 1.0
    statistics_faces: CountFromZero = 1000
    fused: bool = False
    pointwise_scale: bool = False


@dataclass(frozen=True, config=_TABLE)
class TrainConfig:
    """A training run; ``docs/training.md`` describes the keys.

    `model` is one of `pfld_edge_train.models.MODEL_KINDS`. In `bf16` and `fp16` weights, loss and statistics stay in
    float32.
    """

    model: str = "pfld-edge-s"
    width_factor: float = 1.0
    input_size: int = 112
    conv_branches: int = 1
    landmarks: LandmarksConfig = Field(default_factory=LandmarksConfig)
    data: tuple[DataConfig, ...] = ()
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)
    epochs: Count = 60
    batch_size: Count = 64
    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    hard_views: CountFromZero = 1
    bf16: bool = False
    fp16: bool = False
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_steps: CountFromZero = 0
    checkpoint_minutes: NotNegative = 5.0
    tensorboard: bool = False
    trained_on: str = ""

    def __post_init__(self) -> None:
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
        return {**record, "data": list(record["data"])}

    @classmethod
    def from_dict(cls, record: dict[str, Any], where: str = "configuration") -> "TrainConfig":
        """Rebuild a configuration; TrainConfigError where a key is unknown, or a value has a wrong type or range."""
        try:
            config = TypeAdapter(cls).validate_json(json.dumps(record, default=str))
        except ValidationError as error:
            faults = error.errors(include_url=False)
            first = next((fault for fault in faults if fault["type"] == "unexpected_keyword_argument"), faults[0])
            raise TrainConfigError(_sentence(first, where)) from error
        if not config.data:
            raise TrainConfigError(f"{where}: no data; add a [[data]] table with a path")
        return config


def load_config(path: Path) -> TrainConfig:
    """Read a TOML configuration; data paths become absolute, as seen from the file.

    Raises:
        TrainConfigError: The file is missing, not TOML, or says something impossible.
    """
    if not path.is_file():
        raise TrainConfigError(f"{path}: no such configuration file")
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors begin with a mark
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainConfigError(f"{path}: not valid TOML: {error}") from error
    sources = record.get("data", [])
    if isinstance(sources, dict):
        raise TrainConfigError(f"{path}: [data] must read [[data]], with two brackets: there may be several sources")
    for item in sources if isinstance(sources, list) else []:
        for name in ("path", "images"):
            if isinstance(item, dict) and isinstance(item.get(name), str) and item[name]:
                item[name] = str((path.parent / item[name]).resolve())
    return TrainConfig.from_dict(record, str(path))


def landmark_scheme(config: LandmarksConfig) -> LandmarkScheme:
    """The scheme that a configuration names or describes; TrainConfigError where it is incomplete, or contradictory.

    Without a mirror permutation it has none, see `LandmarkScheme.has_mirror`.
    """
    described = config.points or config.names or config.mirror or config.normalizing_points
    if config.scheme in KNOWN_SCHEMES:
        if described:
            raise TrainConfigError(
                f"scheme {config.scheme!r} is known: choose another name to describe one of your own"
            )
        return KNOWN_SCHEMES[config.scheme]
    count = config.points or len(config.names)
    if count < 1:
        raise TrainConfigError(
            f"unknown scheme {config.scheme!r}; known: {', '.join(KNOWN_SCHEMES)}. One of your own needs points, "
            "normalizing_points and, if faces are to be mirrored, mirror"
        )
    names = config.names or tuple(f"point_{i}" for i in range(count))
    if len(names) != count or len(set(names)) != count:
        raise TrainConfigError(f"{count} points need {count} names, all different; found {len(set(names))}")
    mirror = config.mirror or tuple(range(count))
    if sorted(mirror) != list(range(count)):
        raise TrainConfigError(f"mirror must hold each of 0 to {count - 1} once")
    odd = next((i for i, point in enumerate(mirror) if mirror[point] != i), None)
    if odd is not None:
        raise TrainConfigError(
            f"mirror is not a mirror: {odd} becomes {mirror[odd]}, which becomes {mirror[mirror[odd]]}"
        )
    ends = config.normalizing_points
    if len(ends) != 2 or ends[0] == ends[1] or not all(0 <= point < count for point in ends):
        raise TrainConfigError(
            f"normalizing_points must name two of the points 0 to {count - 1}, such as the outer corners of the eyes; "
            f"found {list(ends)}"
        )
    return LandmarkScheme(config.scheme, names, mirror, (ends[0], ends[1]))


def _sentence(fault: Mapping[str, Any], where: str) -> str:
    """Describe one of pydantic's errors in a line: file, key, allowed values, found value."""
    kind, key, text = fault["type"], ".".join(map(str, fault["loc"])), fault["msg"]
    if kind == "value_error":
        return f"{where}{', ' * bool(key)}{key}: {fault['ctx']['error']}"
    if kind == "unexpected_keyword_argument":
        table: Any = TrainConfig
        if len(fault["loc"]) > 1:
            annotation = TrainConfig.__pydantic_fields__[fault["loc"][0]].annotation  # type: ignore[attr-defined]
            table = (*get_args(annotation), annotation)[0]
        return f"{where}: unknown key {key}; known: {', '.join(table.__pydantic_fields__)}"
    text = text.replace("Input", key) if text.startswith("Input") else f"{key}: {text}"
    return f"{where}: {text}, found {fault['input']!r}"
