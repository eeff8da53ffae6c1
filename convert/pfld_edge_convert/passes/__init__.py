"""Rewrites of ONNX graphs that keep what the graph computes; one idea a file."""

from pfld_edge_convert.passes.base import GraphPass, PassReport, PassResult, check_equivalence, run_passes
from pfld_edge_convert.passes.conv_to_gemm import ConvToGemm
from pfld_edge_convert.passes.eliminate_dead_channels import EliminateDeadChannels
from pfld_edge_convert.passes.eliminate_identity import EliminateIdentity
from pfld_edge_convert.passes.fold_batchnorm import FoldBatchNorm
from pfld_edge_convert.passes.make_batch_dynamic import MakeBatchDynamic
from pfld_edge_convert.passes.mean_to_pool import MeanToPool
from pfld_edge_convert.passes.upgrade_opset import UpgradeOpset

__all__ = [
    "ConvToGemm",
    "EliminateDeadChannels",
    "EliminateIdentity",
    "FoldBatchNorm",
    "GraphPass",
    "MakeBatchDynamic",
    "MeanToPool",
    "PassReport",
    "PassResult",
    "UpgradeOpset",
    "check_equivalence",
    "default_passes",
    "run_passes",
]


def default_passes() -> tuple[GraphPass, ...]:
    """All passes in the order in which each finds what the one before it laid bare."""
    return (
        UpgradeOpset(),
        MakeBatchDynamic(),
        EliminateIdentity(),
        FoldBatchNorm(),
        MeanToPool(),
        EliminateDeadChannels(),
        ConvToGemm(),
    )
