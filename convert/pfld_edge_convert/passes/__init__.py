"""Rewrites of ONNX graphs that keep what the graph computes."""

from pfld_edge_convert.passes.base import GraphPass, PassResult, check_equivalence, run_passes
from pfld_edge_convert.passes.canonical_form import (
    EliminateIdentity,
    FoldConstants,
    MakeBatchDynamic,
    UpgradeOpset,
    canonical_form,
    default_passes,
)
from pfld_edge_convert.passes.channels import EliminateDeadChannels
from pfld_edge_convert.passes.operator_rewrites import ConvToGemm, FoldBatchNorm, MeanToPool, RecognizeHardActivations

__all__ = [
    "ConvToGemm",
    "EliminateDeadChannels",
    "EliminateIdentity",
    "FoldBatchNorm",
    "FoldConstants",
    "GraphPass",
    "MakeBatchDynamic",
    "MeanToPool",
    "PassResult",
    "RecognizeHardActivations",
    "UpgradeOpset",
    "canonical_form",
    "check_equivalence",
    "default_passes",
    "run_passes",
]
