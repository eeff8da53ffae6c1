"""The networks: faces ``(N, 3, S, S)`` in, ``(N, 2 * num_landmarks)`` fractions of the crop out."""

from pfld_edge_train.models.auxiliary import AuxiliaryNet, WithAuxiliary
from pfld_edge_train.models.config import ModelConfig
from pfld_edge_train.models.landmark_net import LandmarkNet
from pfld_edge_train.models.registry import MODEL_KINDS, build_model

__all__ = ["MODEL_KINDS", "AuxiliaryNet", "LandmarkNet", "ModelConfig", "WithAuxiliary", "build_model"]
