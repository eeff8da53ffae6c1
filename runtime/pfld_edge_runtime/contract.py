"""The contract: what a caller must know to run a model and to interpret its output, carried by the model's own file.

With the landmark schemes that it names: the name of each point of a face, and the point that it becomes in the mirror
image.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_runtime.errors import ModelContractError


@dataclass(frozen=True, slots=True)
class LandmarkScheme:
    """A fixed ordering of the points of a face.

    Attributes:
        name: The scheme's name, e.g. ``wflw-98``.
        names: One name a point, in output order; "left" and "right" are the sides of the photograph.
        mirror: ``mirror[i]`` is the index of the point that point ``i`` becomes in the mirror image; ``i`` for all of
            them where the scheme knows no mirror image.
        normalizing_points: The two points whose distance divides the error in the NME
            (for WFLW the outer eye corners, 60 and 72).
    """

    name: str
    names: tuple[str, ...]
    mirror: tuple[int, ...]
    normalizing_points: tuple[int, int]

    @property
    def num_landmarks(self) -> int:
        """How many points a face has."""
        return len(self.names)

    @property
    def has_mirror(self) -> bool:
        """Whether the points of the mirror image are known."""
        return self.mirror != tuple(range(len(self.names)))


def _scheme(
    name: str, parts: tuple[tuple[str, tuple[int, ...]], ...], normalizing_points: tuple[int, int]
) -> LandmarkScheme:
    """Build a scheme from its regions in output order, each with the indices that its points have when mirrored."""
    names = tuple(f"{part}_{i}" for part, mirror in parts for i in range(len(mirror)))
    return LandmarkScheme(name, names, tuple(index for _, mirror in parts for index in mirror), normalizing_points)


WFLW_98 = _scheme(
    "wflw-98",
    (
        ("contour", tuple(range(32, -1, -1))),
        ("left_brow", (46, 45, 44, 43, 42, 50, 49, 48, 47)),
        ("right_brow", (37, 36, 35, 34, 33, 41, 40, 39, 38)),
        ("nose_bridge", (51, 52, 53, 54)),
        ("nose_base", (59, 58, 57, 56, 55)),
        ("left_eye", (72, 71, 70, 69, 68, 75, 74, 73)),
        ("right_eye", (64, 63, 62, 61, 60, 67, 66, 65)),
        ("outer_lip", (82, 81, 80, 79, 78, 77, 76, 87, 86, 85, 84, 83)),
        ("inner_lip", (92, 91, 90, 89, 88, 95, 94, 93)),
        ("left_pupil", (97,)),
        ("right_pupil", (96,)),
    ),
    normalizing_points=(60, 72),
)
"""The 98 points of WFLW (Wu et al., "Look at Boundary", CVPR 2018, figure 2)."""


IBUG_68 = _scheme(
    "ibug-68",
    (
        ("contour", tuple(range(16, -1, -1))),
        ("left_brow", (26, 25, 24, 23, 22)),
        ("right_brow", (21, 20, 19, 18, 17)),
        ("nose_bridge", (27, 28, 29, 30)),
        ("nose_base", (35, 34, 33, 32, 31)),
        ("left_eye", (45, 44, 43, 42, 47, 46)),
        ("right_eye", (39, 38, 37, 36, 41, 40)),
        ("outer_lip", (54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55)),
        ("inner_lip", (64, 63, 62, 61, 60, 67, 66, 65)),
    ),
    normalizing_points=(36, 45),
)
"""The 68 points of 300-W (Sagonas et al., ICCV Workshops 2013, figure 1), which dlib and many others use."""

FIVE_POINTS = LandmarkScheme(
    name="five-points",
    names=("left_eye", "right_eye", "nose_tip", "left_mouth_corner", "right_mouth_corner"),
    mirror=(1, 0, 2, 4, 3),
    normalizing_points=(0, 1),
)
"""The five points of detectors and of face recognition; "left" is the photograph's."""

KNOWN_SCHEMES = {scheme.name: scheme for scheme in (WFLW_98, IBUG_68, FIVE_POINTS)}
"""The schemes above by name."""

CONTRACT_KEY = "pfld_edge.contract"
"""Key of the contract's JSON in an ONNX file's ``metadata_props``."""

FORMAT_VERSION = 1
"""Newest contract format that this runtime understands."""

LOG_VARIANCES = "log_variances"
"""A network's second output, where it has heat maps: ``(N, P)``, natural logarithms of the landmarks' variances.

Of x plus y, in squares of the crop's side; half of it is the logarithm of a landmark's spread, a standard deviation.
"""

GOOD_POINT = 0.04
"""Error of a good point, as a share of the crop's side: some 0.1 of a frontal face's eye distance."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "color_order": ("bgr", "rgb"),
    "layout": ("NCHW", "NHWC", "HWC"),
    "input_dtype": ("float32", "uint8"),
    "output_space": ("crop-fraction", "image-pixels"),
}

# The linear congruential generator of Numerical Recipes (Press et al., section 7.1): integer arithmetic modulo
# 2**32 alone, so that C++, Swift or JavaScript make the same pixels without numpy's generators.
_MULTIPLIER = np.uint32(1664525)
_INCREMENT = np.uint32(1013904223)
_GRID = 14


@dataclass(frozen=True, slots=True)
class CropRule:
    """How a face is cropped from the photograph (see `pfld_edge_runtime.crop_windows`).

    Attributes:
        box: What the box must enclose: ``landmarks-tight``, the integer tight box of the landmarks.
        margin: Side of the square crop as a multiple of the box's longer side.
        shape: ``square``: the crop has one side length, whatever the box's aspect.
        padding: ``zero``: what lies outside the photograph is black.
    """

    box: str = "landmarks-tight"
    margin: float = 1.2
    shape: str = "square"
    padding: str = "zero"

    def __post_init__(self) -> None:
        known = {"box": "landmarks-tight", "shape": "square", "padding": "zero"}
        for name, value in known.items():
            if (found := getattr(self, name)) != value:
                raise ModelContractError(f"crop rule {name}={found!r} is unknown; this runtime knows {value!r}")
        if not 0.1 <= self.margin <= 10:
            raise ModelContractError(f"crop margin must be from 0.1 to 10, not {self.margin!r}")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The network's output for the `fingerprint_image` of a seed, as the exporter computed it.

    The raw output: ``2 * num_landmarks`` fractions of the crop, rounded to 6 decimals; of an end-to-end graph, pixels,
    the whole image being the box. `tolerance` is the largest difference that a healthy device may show.
    """

    seed: int
    output: tuple[float, ...]
    tolerance: float


@dataclass(frozen=True, slots=True)
class ConfidenceCurve:
    """The probability that landmarks are good, as a falling function of a sign of doubt d, which is not negative.

    A logistic curve over the logarithm: ``1 / (1 + (d / middle) ** steepness)``. It holds for the network that it was
    fitted on. Both numbers are above 0.
    """

    middle: float
    steepness: float

    def __post_init__(self) -> None:
        if not all(0 < value < math.inf for value in (self.middle, self.steepness)):
            raise ModelContractError(f"a confidence curve needs finite values above 0, not {asdict(self)}")

    def __call__(self, doubt: NDArray[np.floating]) -> Float32Array:
        """Map doubts of any shape to float32 probabilities; 0 where the doubt is infinite, NaN where it is NaN."""
        # Above 1e9 nothing changes any more, and powers stay finite.
        ratio = np.minimum(doubt.astype(np.float64) / self.middle, 1e9)
        return np.asarray(1 / (1 + ratio**self.steepness), np.float32)


@dataclass(frozen=True, slots=True)
class Contract:
    """Everything that a caller must know of a landmark network to run it and to interpret its output.

    The defaults are the published PFLD protocol on WFLW. A pixel ``p`` (0 to 255) enters the network as
    ``(p - mean) / scale``.

    Attributes:
        model: The network's kind, e.g. ``pfld-ghostone``.
        input_size: Side of the square input in pixels.
        color_order: Channel order of the input, ``bgr`` or ``rgb``.
        mean: Subtracted from each channel, in grey levels, in the network's channel order.
        scale: Divides each channel after that, in grey levels.
        layout: ``NCHW`` or ``NHWC``; ``HWC`` for an end-to-end graph, whose input is a whole photograph.
        input_dtype: ``float32`` (normalized pixels) or ``uint8`` (raw pixels; mean and scale are inside the graph).
        crop: How the face is cropped.
        landmarks: The points, in output order.
        output_space: ``crop-fraction``: x0 y0 x1 y1 ... as fractions of the crop's side; ``image-pixels`` for an
            end-to-end graph, which crops the faces itself.
        quantization: ``none``, or how the network was quantized.
        target: The device family the file was made for, ``portable`` for all.
        calibration: The data that the quantizer calibrated on.
        trained_on: Where the weights come from.
        nme: Measured normalized mean error, where known.
        nme_data: The faces on which `nme` was measured.
        fingerprint: A seeded input's expected output, for the self-test.
        confidence_curve: The network's curve for `landmark_confidence`, of a face's mirror disagreement
            (``benchmarks/confidence.py`` fits one to any model file); None where none was fitted.
        spread_curve: The probability that a point lies within `GOOD_POINT` of the crop's side of the true one, as a
            function of its heat map's spread in the same unit; None where none was fitted, or there are no heat maps.
        format_version: Version of this record.
    """

    model: str = "pfld"
    input_size: int = 112
    color_order: str = "bgr"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    scale: tuple[float, float, float] = (127.5, 127.5, 127.5)
    layout: str = "NCHW"
    input_dtype: str = "float32"
    crop: CropRule = field(default_factory=CropRule)
    landmarks: LandmarkScheme = WFLW_98
    output_space: str = "crop-fraction"
    quantization: str = "none"
    target: str = "portable"
    calibration: str = ""
    trained_on: str = ""
    nme: float | None = None
    nme_data: str = ""
    fingerprint: Fingerprint | None = None
    confidence_curve: ConfidenceCurve | None = None
    spread_curve: ConfidenceCurve | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                expected = " or ".join(choices)
                raise ModelContractError(f"contract field {name} is {getattr(self, name)!r}; expected {expected}")
        if self.end_to_end != (self.layout == "HWC"):
            raise ModelContractError(
                f"contract fields layout {self.layout!r} and output_space {self.output_space!r} contradict each other"
            )
        if not (isinstance(self.input_size, int) and 16 <= self.input_size <= 4096):
            raise ModelContractError(f"contract field input_size is {self.input_size!r}; expected 16 to 4096 pixels")
        if len(self.mean) != 3 or len(self.scale) != 3 or not all(map(math.isfinite, (*self.mean, *self.scale))):
            raise ModelContractError("contract fields mean and scale need three finite values each")
        if not all(value > 0 for value in self.scale):
            raise ModelContractError("contract field scale needs positive values")
        if sorted(self.landmarks.mirror) != list(range(self.landmarks.num_landmarks)):
            raise ModelContractError("contract field landmarks.mirror is not a permutation of the points")
        points = self.landmarks.normalizing_points
        if len(points) != 2 or not all(0 <= point < self.landmarks.num_landmarks for point in points):
            raise ModelContractError("contract field landmarks.normalizing_points must name two of the points")

    @property
    def end_to_end(self) -> bool:
        """Whether the file is an end-to-end graph: a photograph and boxes in, landmarks in photograph pixels out."""
        return self.output_space == "image-pixels"

    def check_signature(self, entry: Sequence[object], dtype: str, result: Sequence[object]) -> None:
        """Raise a `ModelContractError` unless a network has the input and output promised.

        Of both the shape, whose first number is the batch, and of the input the dtype.
        """
        size, count = self.input_size, 2 * self.landmarks.num_landmarks
        expected = [3, size, size] if self.layout == "NCHW" else [size, size, 3]
        if list(entry[1:]) != expected or dtype != self.input_dtype:
            raise ModelContractError(
                f"the contract promises an input of (N, {expected}) {self.input_dtype}, the network has "
                f"{list(entry)} {dtype}"
            )
        if list(result[1:]) != [count]:
            raise ModelContractError(f"the contract promises {count} outputs a face, the network has {list(result)}")

    def to_dict(self) -> dict[str, Any]:
        """Give the contract as plain JSON types (dicts, lists, strings, numbers, None)."""
        result: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return result

    def to_json(self, indent: int | None = None) -> str:
        """Write the contract as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def replace(self, **changes: Any) -> "Contract":  # noqa: ANN401 - the dataclass's own field types apply
        """Copy the contract with some fields changed."""
        return replace(self, **changes)

    @classmethod
    def from_dict(cls, record: object) -> "Contract":
        """Rebuild a contract from `to_dict`; a `ModelContractError` says that it is damaged or of a newer format."""
        if not isinstance(record, dict):
            raise ModelContractError(f"the contract must be a JSON object, found {type(record).__name__}")
        version = record.get("format_version")
        if not isinstance(version, int):
            raise ModelContractError("the contract has no format_version; it is damaged or not from pfld-edge")
        if version > FORMAT_VERSION:
            raise ModelContractError(
                f"the contract has format version {version}, this runtime reads up to {FORMAT_VERSION}: "
                "upgrade with `pip install -U pfld-edge-runtime`"
            )
        unknown = sorted(set(record) - {item.name for item in fields(cls)})
        if unknown:
            raise ModelContractError(
                f"the contract has unknown fields: {', '.join(unknown)}: "
                "upgrade with `pip install -U pfld-edge-runtime`, or convert the model again"
            )
        try:
            return cls(**_rebuilt(record))
        except ModelContractError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelContractError(f"the contract is damaged: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> "Contract":
        """Rebuild a contract from JSON text; see `from_dict`."""
        try:
            record = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ModelContractError(f"the contract is not valid JSON: {error}") from error
        return cls.from_dict(record)


def _rebuilt(record: dict[str, Any]) -> dict[str, Any]:
    values = dict(record)
    for name in ("mean", "scale"):
        if name in values:
            values[name] = tuple(map(float, values[name]))
    if "crop" in values:
        values["crop"] = CropRule(**values["crop"])
    if "landmarks" in values:
        scheme = values["landmarks"]
        values["landmarks"] = LandmarkScheme(
            name=str(scheme["name"]),
            names=tuple(map(str, scheme["names"])),
            mirror=tuple(map(int, scheme["mirror"])),
            normalizing_points=tuple(map(int, scheme["normalizing_points"])),  # type: ignore[arg-type]
        )
    if (seen := values.get("fingerprint")) is not None:
        output = tuple(map(float, seen["output"]))
        values["fingerprint"] = Fingerprint(int(seen["seed"]), output, float(seen["tolerance"]))
    for name in ("confidence_curve", "spread_curve"):
        if (curve := values.get(name)) is not None:
            values[name] = ConfidenceCurve(float(curve["middle"]), float(curve["steepness"]))
    return values


def fingerprint_image(seed: int, size: int) -> Uint8Array:
    """Draw a coarse mosaic of random colours: a 14 x 14 grid of flat tiles stretched to ``(size, size, 3)`` uint8.

    Tiles rather than single pixels: white noise drives a landmark network into a corner where tiny arithmetic
    differences grow, flat tiles excite it as photographs do. `seed` is any integer from 0 to 2**32 - 1; the channel
    order is whatever the model calls its own.
    """
    count = _GRID * _GRID * 3
    powers = np.cumprod(np.full(count, _MULTIPLIER, np.uint32), dtype=np.uint32)
    geometric = np.cumsum(np.concatenate([np.ones(1, np.uint32), powers[:-1]]), dtype=np.uint32)
    states = powers * np.uint32(seed) + geometric * _INCREMENT
    tiles = (states >> np.uint32(24)).astype(np.uint8).reshape(_GRID, _GRID, 3)
    index = np.arange(size) * _GRID // size
    image: Uint8Array = tiles[index][:, index]
    return image
