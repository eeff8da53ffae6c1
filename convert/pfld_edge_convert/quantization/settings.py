"""Settings of the quantizer, and the processor families that a file can be made for."""

import platform
from dataclasses import dataclass

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.quantization.weights import FULL_RANGE, SATURATION_FREE, WeightLimits
from pfld_edge_runtime.device_check import cpu_features

__all__ = ["EQUALIZE_BY", "RANGE_CANDIDATES", "TARGETS", "QuantizationSettings", "Target", "target_named"]

RANGE_CANDIDATES = ("minmax", "faces:98", "percentile:99.99", "percentile:99.9", "moving-average", "mse", "entropy")
"""Range methods that ``auto`` tries."""

EQUALIZE_BY = ("minmax", "faces:98")
"""Range methods that cross-layer equalization tries: the first levels channels that a few faces blow up, the second
leaves those out and levels what nearly all faces hold. Which is better depends on the network."""


@dataclass(frozen=True, slots=True)
class Target:
    """A family of processors.

    All families take uint8 activations and int8 weights of one scale a channel, zero points of weights 0: those are
    what onnxruntime's kernels compute, on x86 as on arm64 (signed activations have no fast kernel on x86).

    Attributes:
        name: As on the command line.
        limits: Bounds of the integer weights. -128 is never used: arm64's depthwise kernel overflows on it.
        channel_multiple: Channels that its depthwise kernel takes at a time.
        space_to_depth: Apply `SpaceToDepthStem` to the first convolution. Not where pairs are limited: it makes other
            weights neighbours.
        machines: Values of `platform.machine`, lower case, of its processors; all where empty.
        features: A processor has one of these `cpu_features`; any processor where empty.
    """

    name: str
    limits: WeightLimits
    channel_multiple: int
    space_to_depth: bool = False
    machines: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()

    def is_host(self) -> bool:
        """Whether this machine is one of the family, so that its timings say something about the file."""
        if self.machines and platform.machine().lower() not in self.machines:
            return False
        return not self.features or not self.features.isdisjoint(cpu_features() or ())


_X86 = frozenset({"x86_64", "amd64"})

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("portable", SATURATION_FREE, 16),
        Target("x86-vnni", FULL_RANGE, 16, True, _X86, frozenset({"avx512_vnni", "avx_vnni"})),
        Target("x86-avx2", SATURATION_FREE, 16, False, _X86, frozenset({"avx2"})),
        Target("arm64", FULL_RANGE, 8, False, frozenset({"arm64", "aarch64"})),
    )
}


def target_named(name: str) -> Target:
    """Look a target up.

    Raises:
        ConvertError: There is none of that name.
    """
    if name not in TARGETS:
        raise ConvertError(f"target {name!r} is unknown; known are {', '.join(TARGETS)}")
    return TARGETS[name]


@dataclass(frozen=True, slots=True)
class QuantizationSettings:
    """How a network is quantized. The defaults are for users; the switches are there to measure what each step gains.

    Attributes:
        target: Name of a `Target`.
        ranges: A method of `estimate_range`, or ``auto``: the one whose landmarks, on calibration faces that were held
            back, stay closest to those of the float network.
        equalize: 0 to 1, strength of cross-layer equalization.
        equalize_by: The range method whose ranges are equalized, or ``auto``.
        feedback: Round weights with error feedback (GPTQ) instead of to nearest.
        correct_bias: Correct biases by the mean errors of the layers' outputs.
        pixels: Read uint8 images, ``(n, S, S, 3)``, where the network's first layers allow it.
    """

    target: str = "portable"
    ranges: str = "auto"
    equalize: float = 0.75
    equalize_by: str = "auto"
    feedback: bool = True
    correct_bias: bool = True
    pixels: bool = True

    def describe(self, ranges: str, format_label: str, float_layers: int = 0) -> str:
        """Name the settings in one line, for the contract.

        Args:
            ranges: The method that was chosen.
            format_label: The format and its activations, e.g. ``QOperator, uint8 activations``.
            float_layers: Number of layers that stayed in float.
        """
        words = [f"int8 static, {format_label}, int8 weights per channel", f"{ranges} ranges"]
        words += [name for name, on in (("equalized", self.equalize > 0), ("bias corrected", self.correct_bias)) if on]
        words.append("feedback rounding" if self.feedback else "nearest rounding")
        if float_layers:
            words.append(f"{float_layers} layer{'s' if float_layers > 1 else ''} in float")
        return ", ".join(words)
