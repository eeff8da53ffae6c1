"""The kinds of networks, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from pfld_edge_train.errors import ModelConfigError
from pfld_edge_train.models.config import ModelConfig
from pfld_edge_train.models.edge import PFLDEdgeM, PFLDEdgeS
from pfld_edge_train.models.ghostnet import PFLDGhostNet, PFLDGhostNetSlim
from pfld_edge_train.models.ghostone import PFLDGhostOne
from pfld_edge_train.models.landmark_net import LandmarkNet
from pfld_edge_train.models.pfld import PFLD

__all__ = ["MODEL_KINDS", "build_model"]

MODEL_KINDS: Mapping[str, Callable[[ModelConfig], LandmarkNet]] = MappingProxyType(
    {
        "pfld": PFLD,
        "pfld-ghostnet": PFLDGhostNet,
        "pfld-ghostnet-slim": PFLDGhostNetSlim,
        "pfld-ghostone": PFLDGhostOne,
        "pfld-edge-s": PFLDEdgeS,
        "pfld-edge-m": PFLDEdgeM,
    }
)
"""What `ModelConfig.kind` may be."""


def build_model(config: ModelConfig) -> LandmarkNet:
    """Build a network with random weights.

    Raises:
        ModelConfigError: The kind is unknown.
    """
    if config.kind not in MODEL_KINDS:
        raise ModelConfigError(f"unknown model {config.kind!r}; known: {', '.join(MODEL_KINDS)}")
    return MODEL_KINDS[config.kind](config)
