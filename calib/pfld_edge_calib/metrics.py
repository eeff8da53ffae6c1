"""Landmark accuracy: NME, failure rate, area under the cumulative error curve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Accuracy", "accuracy", "accuracy_by_subset", "nme_per_face"]

THRESHOLD = 0.1
"""Error at which a face counts as failed, as WFLW's authors have it (Wu et al. 2018, section 4)."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The figures of one set of faces.

    Attributes:
        faces: Number of faces.
        nme: Mean normalized mean error.
        failure_rate: Share of faces whose error exceeds 0.1.
        auc: Area under the cumulative error curve from 0 to 0.1, divided by 0.1; 1 is perfect.
    """

    faces: int
    nme: float
    failure_rate: float
    auc: float


def nme_per_face(
    predicted: NDArray[np.floating], truth: NDArray[np.floating], normalizing_points: tuple[int, int]
) -> NDArray[np.float64]:
    """Mean point error of each face divided by the distance between two of its true points.

    Args:
        predicted: ``(N, P, 2)``.
        truth: ``(N, P, 2)``, same units.
        normalizing_points: For WFLW 60 and 72, the outer eye corners ("inter-ocular").

    Returns:
        ``(N,)`` float64.

    Raises:
        ValueError: The shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted {predicted.shape} and truth {truth.shape} must have one shape")
    first, second = normalizing_points
    errors = np.linalg.norm(predicted.astype(np.float64) - truth, axis=2).mean(axis=1)
    distance = np.linalg.norm(truth[:, first].astype(np.float64) - truth[:, second], axis=1)
    result: NDArray[np.float64] = errors / distance
    return result


def accuracy(nmes: NDArray[np.float64], threshold: float = THRESHOLD) -> Accuracy:
    """Summarize the errors of a set of faces.

    The area is exact: the cumulative error curve is a staircase, whose area below the threshold is the mean of
    ``max(0, threshold - nme)``.

    Args:
        nmes: ``(N,)``, at least one.
        threshold: Error at which a face counts as failed.
    """
    if len(nmes) == 0:
        raise ValueError("accuracy of no faces is undefined")
    return Accuracy(
        faces=len(nmes),
        nme=float(nmes.mean()),
        failure_rate=float((nmes > threshold).mean()),
        auc=float(np.maximum(0, threshold - nmes).mean() / threshold),
    )


def accuracy_by_subset(nmes: NDArray[np.float64], subsets: Sequence[frozenset[str]]) -> Mapping[str, Accuracy]:
    """Summarize all faces (``all``) and those of each attribute that occurs.

    Args:
        nmes: ``(N,)``.
        subsets: N sets of attribute names.
    """
    result = {"all": accuracy(nmes)}
    for name in sorted(set().union(*subsets)):
        chosen = np.array([name in attributes for attributes in subsets])
        result[name] = accuracy(nmes[chosen])
    return result
