"""Chooses ranges by what the network's output says."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pfld_edge_convert.passes.graph_index import GraphIndex
from pfld_edge_convert.quantization.grid import Grid
from pfld_edge_convert.quantization.histogram import ChannelHistogram
from pfld_edge_convert.quantization.layers import shared_grids
from pfld_edge_convert.quantization.ranges import estimate

__all__ = ["Histograms", "best_method", "channel_reach", "grids_from", "is_feature", "with_headroom"]

Histograms = Mapping[str, ChannelHistogram]

_FINALISTS = 2
"""Range methods that are looked at closely, beside the first candidate, which is the safest: it clips nothing."""

_CLEARLY = 0.95

_HEADROOM = 1.1
"""Features that are one number a face have been seen only as often as there were faces, so that new faces exceed the
largest; maps have been seen in thousands of pixels."""


def with_headroom(index: GraphIndex, histograms: Histograms) -> dict[str, ChannelHistogram]:
    """Widen the extremes of features that are one number a face."""
    return {
        name: histogram.stretched(_HEADROOM) if is_feature(index, name) else histogram
        for name, histogram in histograms.items()
    }


def channel_reach(index: GraphIndex, histograms: Histograms, method: str) -> dict[str, np.ndarray]:
    """Largest magnitude of each channel, by a range method: what `EqualizeChannels` should level."""
    return {
        name: np.maximum(np.maximum(*(np.abs(end) for end in estimate(histogram, method))), 1e-9)
        for name, histogram in histograms.items()
        # A mean has the channels of what it averages; their scales are decided there.
        if index.producers[name].op_type != "GlobalAveragePool"
    }


def grids_from(index: GraphIndex, histograms: Histograms, method: str) -> dict[str, Grid]:
    """Give every tensor a grid, one for all tensors that are concatenated.

    Features that are one number a face always get all of their range: clipping them clips the faces that turn most.
    """
    ends = {}
    for name, histogram in histograms.items():
        used = "minmax" if is_feature(index, name) else method
        low, high = estimate(histogram if used.startswith("faces") else histogram.merged(), used)
        ends[name] = (float(low.min()), float(high.max()))
    for group in shared_grids(index):
        known = [ends[name] for name in group if name in ends]
        if known:
            common = (min(low for low, _ in known), max(high for _, high in known))
            ends.update({name: common for name in group if name in ends})
    return {name: Grid.covering(*pair) for name, pair in ends.items()}


def best_method(
    candidates: Sequence[str], roughly: Callable[[str], float], finely: Callable[[str], float]
) -> tuple[str, dict[str, float]]:
    """Try ways to set ranges: all of them roughly, the best few finely.

    Args:
        candidates: Names of the ways, the safest first.
        roughly: Quantizes in one of them in a fraction of a second, and measures how far the landmarks of held-back
            faces move.
        finely: The same with the corrections that follow, in some seconds.

    Returns:
        The best, and the finest figure that each was given.
    """
    if len(candidates) == 1:
        return candidates[0], {}
    found = {method: roughly(method) for method in candidates}
    finalists = {*sorted(found, key=lambda method: found[method])[:_FINALISTS], candidates[0]}
    fine = {method: finely(method) for method in candidates if method in finalists}
    best = min(fine, key=lambda method: fine[method])
    # Held-back faces are few: what they gain by clipping must be clear.
    return (best if fine[best] < _CLEARLY * fine[candidates[0]] else candidates[0]), {**found, **fine}


def is_feature(index: GraphIndex, name: str) -> bool:
    """Whether a tensor is one number a channel and face: pooled, or behind the last map."""
    return index.rank(name) == 2 or index.producers[name].op_type == "GlobalAveragePool"
