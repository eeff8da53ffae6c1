"""Families of processors, and what an INT8 file must look like to be right and fast on them."""

from dataclasses import dataclass

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.quantization.weights import FULL_RANGE, SATURATION_FREE, WeightLimits

__all__ = ["TARGETS", "Target", "target_named"]


@dataclass(frozen=True, slots=True)
class Target:
    """A family of processors.

    All families take QOperator files with uint8 activations and int8 weights of one scale a channel, zero points of
    weights 0: those are what onnxruntime's kernels compute, on x86 as on arm64 (signed activations have no fast
    kernel on x86), and a QDQ file only becomes such a file if the runtime's version happens to fuse it.

    Attributes:
        name: As on the command line.
        limits: What its multiply-add bears. Weights of -128 are never used: arm64's depthwise kernel overflows on them.
        channel_multiple: Channels that its depthwise kernel takes at a time.
        group_pixels: Let the first convolution read four pixels at a time (see `GroupPixels`). Not where pairs are
            limited: grouping makes other weights neighbours.
    """

    name: str
    limits: WeightLimits
    channel_multiple: int
    group_pixels: bool


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("portable", SATURATION_FREE, 16, group_pixels=False),
        Target("x86-vnni", FULL_RANGE, 16, group_pixels=True),
        Target("x86-avx2", SATURATION_FREE, 16, group_pixels=False),
        Target("arm64", FULL_RANGE, 8, group_pixels=False),
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
