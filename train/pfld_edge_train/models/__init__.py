"""The networks: faces ``(N, 3, S, S)`` in, ``(N, 2 * num_landmarks)`` fractions of the crop out.

A new network is one file in this folder and one line in `MODEL_KINDS`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from pfld_edge_train.errors import ModelConfigError
from pfld_edge_train.models import pfld
from pfld_edge_train.models.edge import PFLDEdge, PFLDEdgeS1
from pfld_edge_train.models.landmark_net import AuxiliaryNet, LandmarkNet, ModelConfig, WithAuxiliary

__all__ = ["MODEL_KINDS", "AuxiliaryNet", "LandmarkNet", "ModelConfig", "WithAuxiliary", "build_model"]

MODEL_KINDS: Mapping[str, Callable[[ModelConfig], LandmarkNet]] = MappingProxyType(
    {
        "pfld": pfld.PFLD,
        "pfld-ghostnet": pfld.PFLDGhostNet,
        "pfld-ghostnet-slim": pfld.PFLDGhostNetSlim,
        "pfld-ghostone": pfld.PFLDGhostOne,
        "pfld-edge-s": PFLDEdge,
        "pfld-edge-m": PFLDEdge,
        "pfld-edge-s2": PFLDEdge,
        "pfld-edge-m2": PFLDEdge,
        "pfld-edge-s1": PFLDEdgeS1,
        "pfld-edge-m1": PFLDEdge,
        "pfld-polariszhao": pfld.PFLDPolarisZhao,
        "pfld-amrelsersy": pfld.PFLDAmrElsersy,
        "pfld-cunjian": pfld.PFLDCunjian,
        "pfld-luffy": pfld.PFLDLuffy,
    }
)
"""The networks by their `ModelConfig.kind`."""


def build_model(config: ModelConfig) -> LandmarkNet:
    """Build a network with random weights; ModelConfigError where its kind is unknown."""
    if config.kind not in MODEL_KINDS:
        raise ModelConfigError(f"unknown model {config.kind!r}; known: {', '.join(MODEL_KINDS)}")
    return MODEL_KINDS[config.kind](config)
