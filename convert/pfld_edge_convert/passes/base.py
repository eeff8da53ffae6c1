"""Graph passes, and the check that each keeps what the graph computes.

A pass takes a model and returns a `PassResult`; it never edits the model that it was given. `run_passes` applies
passes in order, checks each result with onnx's checker, and compares its outputs in onnxruntime on sample inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.inference import run_model
from pfld_edge_convert.passes.graph_index import drop_unused


@dataclass(frozen=True, slots=True)
class PassResult:
    """Result of a pass.

    Attributes:
        name: The pass's name.
        model: The rewritten model, or the model that was given where nothing changed.
        detail: What changed, in one line; empty where nothing did.
        max_difference: Largest absolute difference that it made to an output on the samples of `run_passes`.
    """

    name: str
    model: onnx.ModelProto
    detail: str = ""
    max_difference: float = 0.0

    @property
    def modified(self) -> bool:
        """Whether anything changed."""
        return bool(self.detail)


class GraphPass(ABC):
    """A rewrite of an ONNX graph that keeps what the graph computes, for every batch size.

    Attributes:
        name: Shown in reports and errors.
        tolerance: Largest absolute difference of the output that the pass may make: 0 for rewrites that move no
            arithmetic, about 1e-6 for those that reorder sums.
    """

    name: ClassVar[str]
    tolerance: ClassVar[float] = 1e-6

    def __call__(self, model: onnx.ModelProto) -> PassResult:
        """Rewrite a copy of the model.

        Raises:
            ConvertError: The model can't be rewritten by this pass.
        """
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        detail = self.rewrite(copy)
        if not detail:
            return PassResult(self.name, model)
        drop_unused(copy)
        return PassResult(self.name, copy, detail)

    @abstractmethod
    def rewrite(self, model: onnx.ModelProto) -> str:
        """Edit the model in place; return what was done in one line, or an empty string."""


def check_equivalence(
    before: onnx.ModelProto, after: onnx.ModelProto, inputs: NDArray[np.float32], tolerance: float, name: str
) -> float:
    """Check with onnxruntime that two models compute the same.

    Args:
        before: The reference model.
        after: The rewritten model; run on the whole batch at once where its batch is dynamic.
        inputs: ``(N, 3, S, S)`` float32 samples.
        tolerance: Largest absolute difference of any value of any output; where an output exceeds 1, as a share of
            its largest value.
        name: Of the step that rewrote it, for the message.

    Returns:
        The largest absolute difference.

    Raises:
        ConvertError: The difference exceeds the tolerance, the outputs' shapes differ, or a model does not run.
    """
    differences = [0.0]
    for output in before.graph.output:
        one, other = (run_model(_with_output(model, output.name), inputs, optimize=False) for model in (before, after))
        if one.shape != other.shape:
            raise ConvertError(f"{name} changed the output's shape from {one.shape} to {other.shape}")
        differences.append(float(np.abs(one.astype(np.float64) - other).max(initial=0)))
        allowed = tolerance * max(1.0, float(np.abs(one).max(initial=0)))
        if not differences[-1] <= allowed:
            raise ConvertError(f"{name} changed the output by {differences[-1]:.3g}; at most {allowed:.3g} is allowed")
    return max(differences)


def _with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    if len(model.graph.output) == 1:
        return model
    single = onnx.ModelProto()
    single.CopyFrom(model)
    kept = next(value for value in model.graph.output if value.name == name)
    single.graph.ClearField("output")
    single.graph.output.append(kept)
    return single


def run_passes(
    model: onnx.ModelProto, passes: Sequence[GraphPass], inputs: NDArray[np.float32]
) -> tuple[onnx.ModelProto, list[PassResult]]:
    """Apply passes in order, first to last, and check each.

    Args:
        model: Left as it is.
        passes: The passes.
        inputs: ``(N, 3, S, S)`` float32 samples to compare outputs on.

    Returns:
        The rewritten model, and the result of each pass.

    Raises:
        ConvertError: A pass made an invalid model, or changed the output; the message names it.
    """
    results = []
    for graph_pass in passes:
        result = graph_pass(model)
        if result.modified:
            _check_valid(result.model, graph_pass.name)
            difference = check_equivalence(model, result.model, inputs, graph_pass.tolerance, graph_pass.name)
            result = replace(result, max_difference=difference)
        results.append(result)
        model = result.model
    return model, results


def _check_valid(model: onnx.ModelProto, name: str) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConvertError(f"{name} made an invalid model: {error}") from error
