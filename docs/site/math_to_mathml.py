"""Turns the pages' LaTeX into MathML while the site is built: browsers draw it themselves, no script is loaded."""

import re
from html import unescape

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: object) -> str:
    """Replace what `pymdownx.arithmatex` marked."""
    return _FORMULA.sub(_formula, html)


def _formula(match: re.Match[str]) -> str:
    display = "block" if match.group(2) == "[" else "inline"
    return convert(unescape(match.group(3)).strip(), display=display)
