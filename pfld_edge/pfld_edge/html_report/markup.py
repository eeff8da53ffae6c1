"""Small pieces of HTML and SVG; every text passes through `escape` once, here."""

import math
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["DASH", "chart", "details", "legend", "number", "percent", "section", "table", "text_at", "tone"]

_TONES = 6

DASH = "\u2013"
"""Where there is no number."""

_MINUS = "\u2212"


def tone(index: int) -> str:
    """CSS class of the index-th series; colours stand in the style sheet, for light and dark."""
    return f"tone{index % _TONES}"


def number(value: float, digits: int = 4) -> str:
    """A number, or a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def percent(value: float, digits: int = 2) -> str:
    """A share with its sign."""
    if not math.isfinite(value):
        return DASH
    text = f"{value:+.{digits}%}"
    # Neither "+0" nor "-0".
    return text.replace("-", _MINUS) if text.strip("+-0.%") else text[1:]


def section(title: str, body: str, note: str = "") -> str:
    """A section with its heading; nothing where there is no body.

    Args:
        title: Plain text.
        body: HTML.
        note: Plain text under the heading.
    """
    if not body:
        return ""
    explained = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{explained}{body}</section>\n"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names the row; cells are HTML, the others are plain text."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{cells[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in cells[1:]) + "</tr>"
        for cells in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table><caption>{escape(caption)}'
        f"</caption><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, body: str) -> str:
    """What is folded away until it is wanted."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def legend(names: Sequence[str]) -> str:
    """Names of series in their colours."""
    items = "".join(f'<li class="{tone(i)}">{escape(name)}</li>' for i, name in enumerate(names))
    return f'<ul class="legend">{items}</ul>'


def chart(title: str, width: float, height: float, parts: Iterable[str]) -> str:
    """An SVG that grows with the page; the title is what screen readers say."""
    return (
        f'<svg class="{"large" if width > 500 else "small"}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def text_at(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    """A text in an SVG."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
