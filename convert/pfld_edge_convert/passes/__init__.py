"""Rewrites of ONNX graphs that keep what the graph computes."""

from pfld_edge_convert.passes.base import GraphPass, PassResult, check_equivalence, run_passes
from pfld_edge_convert.passes.canonical_form import (
    EliminateIdentity,
    FoldConstants,
    MakeBatchDynamic,
    UpgradeOpset,
    canonical_form,
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


def default_passes() -> tuple[GraphPass, ...]:
    """All passes, each behind those whose results it needs."""
    return (
        UpgradeOpset(),
        FoldConstants(),
        MakeBatchDynamic(),
        EliminateIdentity(),
        FoldBatchNorm(),
        RecognizeHardActivations(),
        MeanToPool(),
        EliminateDeadChannels(),
        ConvToGemm(),
    )
