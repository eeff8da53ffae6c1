"""Tables of what differs between two model files."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from pfld_edge_convert.comparison import Comparison, Difference, GraphEdit

__all__ = ["comparison_lines", "comparison_tables"]

_LONG = 60
_EDITS = 12


def comparison_tables(found: Comparison, first: str, second: str, *, layers: bool) -> Iterator[Table]:
    """Lay out what differs; nothing of what is the same.

    Args:
        found: What differs.
        first: Name of the first file.
        second: Name of the second.
        layers: With a line for each layer whose weights differ.
    """
    for title, differences in (
        ("File and network", found.totals),
        ("Contract", found.contract),
        ("Number of operators", found.operators),
    ):
        if differences:
            table = Table(title=title)
            table.add_column("what differs", overflow="fold")
            table.add_column(first, overflow="fold")
            table.add_column(second, overflow="fold")
            for difference in differences:
                table.add_row(difference.name, *_values(difference))
            yield table
    if found.edits:
        yield _edit_table(found.edits, first, second)
    if layers and any(not pair.identical for pair in found.weights):
        yield _weight_table(found)


def comparison_lines(found: Comparison, answers: float | None) -> list[str]:
    """Sum the weights and the answers up, a line a fact.

    Args:
        found: What differs.
        answers: Largest difference of a landmark, fractions of the crop; None where that can't be told.
    """
    same = sum(pair.identical for pair in found.weights)
    lines = [f"weights: {same} of {len(found.weights)} layers that both have are identical"]
    for which, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            lines.append(f"layers with weights in the {which} file only: {', '.join(names)}")
    if not (found.totals or found.contract or found.edits or same < len(found.weights)):
        lines.append("no difference found")
    if answers is not None:
        lines.append(f"landmarks on crops of the bundled portraits differ by at most {answers:.2g} of the crop")
    return lines


def _weight_table(found: Comparison) -> Table:
    caption = "relative: the largest one, as a share of the first file's largest weight"
    if any(pair.rescaled for pair in found.weights):
        caption += "; INT8 against float: equalized channels differ in scale, which changes no landmark"
    table = Table(title="Weights that differ", caption=caption)
    for name in ("layer", "other layer"):
        table.add_column(name, overflow="fold")
    for name in ("shape", "largest", "mean", "relative"):
        table.add_column(name, justify="right")
    for pair in found.weights:
        if pair.identical:
            continue
        shapes = dict.fromkeys(" x ".join(map(str, shape)) for shape in pair.shapes)
        figures = ["" if value is None else f"{value:.2g}" for value in (pair.largest, pair.mean)]
        relative = "" if pair.relative is None else f"{pair.relative:.2%}"
        table.add_row(
            pair.first,
            "the same" if pair.second == pair.first else pair.second,
            " -> ".join(shapes),
            *figures,
            relative,
        )
    return table


def _edit_table(edits: tuple[GraphEdit, ...], first: str, second: str) -> Table:
    hidden = len(edits) - _EDITS
    table = Table(
        title="Order of operators", caption=f"and {hidden} more places (--json has all)" if hidden > 0 else None
    )
    for name in ("behind layer", first, second):
        table.add_column(name, overflow="fold")
    for edit in edits[:_EDITS]:
        table.add_row(edit.after or "(the beginning)", _operators(edit.first), _operators(edit.second))
    return table


def _operators(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "-"


def _values(difference: Difference) -> tuple[str, str]:
    texts = _text(difference.first), _text(difference.second)
    # Long lists may differ behind where they are cut.
    return texts if texts[0] != texts[1] else (texts[0], f"{texts[1]} (differs further on)")


def _text(value: Any) -> str:  # noqa: ANN401 - plain JSON types
    if value in (None, ""):
        return "-"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    text = "; ".join(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else str(value)
    return text if len(text) <= _LONG or isinstance(value, str) else f"{text[:_LONG]}..."
