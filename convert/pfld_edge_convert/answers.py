"""Whether two files find the same landmarks."""

from pathlib import Path

import numpy as np

from pfld_edge_convert.calibration_batches import proof_crops
from pfld_edge_convert.network import open_network
from pfld_edge_runtime import PfldEdgeError

__all__ = ["largest_answer_difference"]


def largest_answer_difference(first: Path, second: Path) -> float | None:
    """Run both on crops of the bundled portraits, each as its contract says.

    Returns:
        The largest difference of a coordinate, in fractions of the crop; None where one is no landmark network that
        takes crops, or they find different numbers of points.
    """
    try:
        networks = [open_network(path) for path in (first, second)]
    except PfldEdgeError:
        return None
    found = [network.predict(proof_crops(network.contract)) for network in networks]
    if found[0].shape != found[1].shape:
        return None
    return float(np.abs(found[0].astype(np.float64) - found[1]).max())
