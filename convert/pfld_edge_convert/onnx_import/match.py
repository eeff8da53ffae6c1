"""Finds which layer of one dataflow is which layer of another."""

from typing import TypeVar

from pfld_edge_convert.onnx_import.dataflow import Flow

__all__ = ["match_flows"]

Ours = TypeVar("Ours")
Theirs = TypeVar("Theirs")


def match_flows(ours: Flow[Ours], theirs: Flow[Theirs]) -> list[tuple[Ours, Theirs]] | None:
    """Unify two dataflows from their outputs backwards.

    Two values match where operation, geometry and all inputs match; a value matches one value only. The operands of
    an addition may be swapped.

    Args:
        ours: Output of the one network.
        theirs: Output of the other.

    Returns:
        The pairs of weights, or None where the networks differ.
    """
    pairs = _match(ours, theirs, {})
    if pairs is None:
        return None
    return [
        (mine.weights, its.weights)
        for mine, its in pairs.items()
        if mine.weights is not None and its.weights is not None
    ]


_Pairs = dict[Flow[Ours], Flow[Theirs]]


def _match(ours: Flow[Ours], theirs: Flow[Theirs], known: _Pairs[Ours, Theirs]) -> _Pairs[Ours, Theirs] | None:
    """Extend the known pairs so that the two values match, or give None and leave them as they were."""
    if ours in known:
        return known if known[ours] is theirs else None
    if (ours.op, ours.geometry, len(ours.inputs)) != (theirs.op, theirs.geometry, len(theirs.inputs)):
        return None
    orders = [theirs.inputs]
    if ours.op == "add":
        orders.append(theirs.inputs[::-1])
    for order in orders:
        found: _Pairs[Ours, Theirs] | None = {**known, ours: theirs}
        for mine, its in zip(ours.inputs, order, strict=True):
            found = None if found is None else _match(mine, its, found)
        if found is not None:
            return found
    return None
