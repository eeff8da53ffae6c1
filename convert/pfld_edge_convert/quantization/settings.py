"""Settings of the quantizer, and the processor families that a file can be made for."""

import platform
from dataclasses import dataclass

from pfld_edge_convert.errors import ConvertError
from pfld_edge_runtime.device_check import cpu_features

RANGE_CANDIDATES = ("minmax", "faces:98", "percentile:99.99", "percentile:99.9", "moving-average", "mse", "entropy")
"""Range methods that ``auto`` tries."""

EQUALIZE_BY = ("minmax", "faces:98")
"""Range methods that cross-layer equalization tries: with extremes over all faces, and without a few outliers."""

_X86 = frozenset({"x86_64", "amd64"})


@dataclass(frozen=True, slots=True)
class WeightLimits:
    """Largest magnitude of a weight that a processor's multiply-add takes, and of two neighbours of one sign.

    x86 without VNNI multiplies unsigned with signed bytes in pairs and clips the sum to 16 bits (VPMADDUBSW): with
    activations of 255, two weights may sum to 128, for 255 * 128 < 2**15. Halving all weights ("reduced range") ensures
    that too, but coarsens every weight for the sake of few. None: sums are held in 32 bits.
    """

    largest: int = 127
    largest_pair: int | None = None


FULL_RANGE = WeightLimits()
SATURATION_FREE = WeightLimits(largest_pair=128)


@dataclass(frozen=True, slots=True)
class Target:
    """A family of processors.

    All take uint8 activations and int8 weights with a scale per channel and zero points of 0, for which onnxruntime
    has fast kernels on x86 and arm64. -128 is never used: arm64's depthwise kernel overflows on it.
    """

    name: str
    limits: WeightLimits
    channel_multiple: int  # that its depthwise kernel takes at a time
    space_to_depth: bool = False  # `SpaceToDepthStem`: weights other than 0 get no new neighbours
    machines: frozenset[str] = frozenset()  # values of `platform.machine`, lower case; any where empty
    features: frozenset[str] = frozenset()  # a processor has one of these `cpu_features`; any where empty

    def is_host(self) -> bool:
        """Whether this machine is one of the family, so that its timings say something about the file."""
        if self.machines and platform.machine().lower() not in self.machines:
            return False
        return not self.features or not self.features.isdisjoint(cpu_features() or ())


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("portable", SATURATION_FREE, 16, True),
        Target("x86-vnni", FULL_RANGE, 16, True, _X86, frozenset({"avx512_vnni", "avx_vnni"})),
        Target("x86-avx2", SATURATION_FREE, 16, True, _X86, frozenset({"avx2"})),
        Target("arm64", FULL_RANGE, 8, False, frozenset({"arm64", "aarch64"})),
    )
}


def target_named(name: str) -> Target:
    """Look a target up; `ConvertError` where there is none of that name."""
    if name not in TARGETS:
        raise ConvertError(f"target {name!r} is unknown; known are {', '.join(TARGETS)}")
    return TARGETS[name]


@dataclass(frozen=True, slots=True)
class QuantizationSettings:
    """How a network is quantized. The steps can be switched off to measure what each gains.

    Attributes:
        target: Name of a `Target`.
        ranges: A method of `estimate_range`, or ``auto``: the one with the least landmark deviation from the float
            network on held-back calibration faces.
        equalize: 0 to 1, strength of cross-layer equalization.
        equalize_by: The range method whose ranges are equalized, or ``auto``.
        feedback: Round weights with error feedback (GPTQ) instead of to nearest.
        correct_bias: Correct biases by the mean errors of the layers' outputs.
        uint8_input: Read uint8 images, ``(n, S, S, 3)``, where only convolutions read the input.
    """

    target: str = "portable"
    ranges: str = "auto"
    equalize: float = 0.75
    equalize_by: str = "auto"
    feedback: bool = True
    correct_bias: bool = True
    uint8_input: bool = True

    def describe(self, ranges: str, format_label: str, float_layers: int = 0) -> str:
        """Describe the settings in one line, for the contract; `format_label` names the format and its activations."""
        words = [f"int8 static, {format_label}, int8 weights per channel", f"{ranges} ranges"]
        words += [name for name, on in (("equalized", self.equalize > 0), ("bias corrected", self.correct_bias)) if on]
        words.append("feedback rounding" if self.feedback else "nearest rounding")
        if float_layers:
            words.append(f"{float_layers} layer{'s' if float_layers > 1 else ''} in float")
        return ", ".join(words)
