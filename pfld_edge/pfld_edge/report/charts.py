"""Charts of the HTML report, drawn with matplotlib as SVG."""

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pfld_edge_calib.evaluation import ModelResult, Robustness, Verification

# Names of models are taken as they are, "$" and all, and stay text in an SVG.
_STYLE: Any = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "pfld-edge",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.edgecolor": "#5b6675",
    "axes.labelcolor": "#5b6675",
    "xtick.color": "#5b6675",
    "ytick.color": "#5b6675",
    "text.color": "#1d2530",
    "grid.color": "#d8dee6",
    "axes.axisbelow": True,
}
_SERIES = ("#0067a5", "#d55e00", "#00876c", "#a4488f", "#8a6d00", "#4b4b4b")
_BUDGET = "#e2f5ec"
_VARIABLES = {"#5b6675": "soft", "#1d2530": "ink", "#d8dee6": "line", _BUDGET: "good-back"}
"""Names that the report's style sheet has for colours, which it changes for dark screens."""
_VARIABLES |= {color: f"t{index}" for index, color in enumerate(_SERIES)}
_MOST_ERROR = 0.15
"""NME at which cumulative error curves end; larger errors are failures by any measure."""
_LEAST_DRIFT = 0.002


def to_svg(title: str, draw: Callable[..., Figure], *arguments: Any) -> str:  # noqa: ANN401 - of the chart
    """Draw a chart as an SVG element without a size of its own, in colours of the report's style sheet.

    The title, plain text, is what screen readers say.
    """
    file = io.BytesIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Names may have letters that the font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure = draw(*arguments)
        for artist in figure.findobj():
            artist.set_clip_on(False)
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue().decode()
    box = re.search(r'viewBox="[^"]+"', text)
    body = text[text.index("<g") : text.rindex("</svg>")]
    # Names of groups would be in the page several times; markers are referred to by theirs, which say what they are.
    body = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", re.sub(r"<defs>\s*<style.*?</defs>", "", body, flags=re.DOTALL))
    for color, name in _VARIABLES.items():
        body = body.replace(color, f"var(--{name})")
    size = "" if box is None else box[0]
    return f'<svg {size} role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{body}</svg>'


def error_chart(found: Verification) -> Figure:
    """Draw cumulative error curves: the share of faces whose NME is at most so large, a curve a network."""
    figure, axes = _axes(5, 3.4)
    for index, model in enumerate(found.models):
        errors = np.sort(np.nan_to_num(model.errors.ocular, nan=np.inf))
        shown = errors[errors <= _MOST_ERROR]
        shares = np.arange(len(shown) + 1) / max(len(errors), 1)
        places = np.concatenate([[0], shown, [_MOST_ERROR]])
        axes.step(places, np.append(shares, shares[-1]), where="post", **_line(index))
    axes.set(xlim=(0, _MOST_ERROR), ylim=(0, 1), xlabel="error of a face (NME)", ylabel="share of faces")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid()
    return figure


def drift_chart(model: ModelResult, budget: float | None) -> Figure:
    """Draw the drift of a network on all faces and by subset, with 95 % intervals, and the budget as an area."""
    assert model.drift is not None  # noqa: S101 - tells the type checker
    rows = model.drift
    ends = [abs(end) for row in rows.values() for end in (row.low, row.high) if np.isfinite(end)]
    most = max([_LEAST_DRIFT, *([] if budget is None else [budget]), *ends]) * 1.05
    figure, axes = _axes(5, 0.75 + 0.24 * len(rows))
    if budget is not None:
        axes.axvspan(-most, budget, color=_BUDGET)
    axes.axvline(0, color="#5b6675", linewidth=1)
    for place, drift in enumerate(rows.values()):
        words = f"{drift.value:+.2%} [{drift.low:+.2%}, {drift.high:+.2%}]" if np.isfinite(drift.value) else "\u2013"
        axes.text(1.02, place, words, transform=axes.get_yaxis_transform(), verticalalignment="center")
        if np.isfinite(drift.value):
            low, value, high = np.clip(np.nan_to_num([drift.low, drift.value, drift.high]), -most, most)
            axes.plot([low, high], [place, place], color=_SERIES[0], linewidth=2)
            axes.plot([value], [place], "o", color=_SERIES[0], markersize=6 if place == 0 else 4)
    axes.set(xlim=(-most, most), ylim=(len(rows) - 0.5, -0.5), xlabel="change of the NME")
    axes.set_yticks(range(len(rows)), [f"{name} ({drift.faces})" for name, drift in rows.items()])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:+.3g}%" if x else "0%")
    return figure


def robustness_chart(found: Robustness, index: int) -> Figure:
    """Draw the NME as one corruption grows stronger; all corruptions' charts have one scale."""
    curve = found.curves[index]
    figure, axes = _axes(3.3, 2.3)
    values = np.concatenate([found.clean, *(each.nmes.ravel() for each in found.curves)])
    most = float(np.nanmax(values)) * 1.08 if np.isfinite(values).any() else 1.0
    labels, nmes = curve.with_clean(found.clean)
    for number, row in enumerate(nmes):
        axes.plot(np.flatnonzero(np.isfinite(row)), row[np.isfinite(row)], **_line(number))
    axes.set(ylim=(0, most), xlabel=curve.unit)
    axes.set_xticks(range(len(labels)), labels)
    axes.grid(axis="y")
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _line(index: int) -> dict[str, Any]:
    """Style of the index-th series; later ones are dashed, so that equal curves are all seen."""
    dashes = "-" if index == 0 else (3.0 * index, (6.0 - min(index, 3), 1.5 * index))
    return {"color": _SERIES[index % len(_SERIES)], "linestyle": dashes, "linewidth": 1.6}
