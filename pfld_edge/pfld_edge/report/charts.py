"""Charts, drawn with matplotlib: PNG or JPEG files, and SVG that goes into the HTML report."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pfld_edge_calib.evaluation.robustness import Robustness
from pfld_edge_calib.evaluation.verification import ModelResult, Verification
from pfld_edge_calib.files import write_atomically
from pfld_edge_convert.benchmark.bench import BenchReport, Timing
from pfld_edge_convert.benchmark.timing import SpeedVerdict
from pfld_edge_convert.quantization.mixed_precision import QuantizationReport

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
_VERDICTS = {
    SpeedVerdict.REFERENCE: "#aaaaaa",
    SpeedVerdict.STEADY: "#3c8cbe",
    SpeedVerdict.FASTER: "#3caa6e",
    SpeedVerdict.SLOWER: "#e17850",
    SpeedVerdict.SAME: "#3c8cbe",
    SpeedVerdict.TOO_NOISY: "#d7d7d7",
}
_MOST_ERROR = 0.15
"""NME at which cumulative error curves end; larger errors are failures by any measure."""
_LEAST_DRIFT = 0.002
_PANELS = 3


def write_chart(path: Path, draw: Callable[..., Figure], *arguments: Any) -> None:  # noqa: ANN401 - of the chart
    """Draw a chart (a function of this module and its arguments) into a PNG or JPEG file, atomically.

    Raises:
        OSError: The file can't be written.
    """
    write_atomically(path, _saved(path.suffix.lower().lstrip("."), draw, *arguments))


def to_svg(title: str, draw: Callable[..., Figure], *arguments: Any) -> str:  # noqa: ANN401 - of the chart
    """Draw a chart as an SVG element without a size of its own, in colours of the report's style sheet.

    The title, plain text, is what screen readers say.
    """
    text = _saved("svg", draw, *arguments).decode()
    box = re.search(r'viewBox="[^"]+"', text)
    body = text[text.index("<g") : text.rindex("</svg>")]
    # Names of groups would be in the page several times; markers are referred to by theirs, which say what they are.
    body = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", re.sub(r"<defs>\s*<style.*?</defs>", "", body, flags=re.DOTALL))
    for color, name in _VARIABLES.items():
        body = body.replace(color, f"var(--{name})")
    size = "" if box is None else box[0]
    return f'<svg {size} role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{body}</svg>'


def _saved(kind: str, draw: Callable[..., Figure], *arguments: Any) -> bytes:  # noqa: ANN401 - of the chart
    file = io.BytesIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Names may have letters that the font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else {}
        figure = draw(*arguments)
        for artist in figure.findobj():
            artist.set_clip_on(False)
        figure.savefig(file, format=kind, dpi=160, transparent=kind == "svg", metadata=nothing)
    return file.getvalue()


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


def robustness_chart(found: Robustness, only: Sequence[int] | None = None) -> Figure:
    """Draw the NME as corruptions grow stronger, a panel a corruption, all on one scale.

    `only` says which curves, drawn without a legend; without it all are drawn, with one.
    """
    chosen = range(len(found.curves)) if only is None else only
    columns = min(_PANELS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.3 * rows + (0 if only else 0.3 + 0.2 * len(found.models))))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    values = np.concatenate([found.clean, *(curve.nmes.ravel() for curve in found.curves)])
    most = float(np.nanmax(values)) * 1.08 if np.isfinite(values).any() else 1.0
    for panel, curve in zip(panels, (found.curves[index] for index in chosen), strict=False):
        labels, nmes = curve.with_clean(found.clean)
        for index, row in enumerate(nmes):
            panel.plot(np.flatnonzero(np.isfinite(row)), row[np.isfinite(row)], **_line(index))
        panel.set(ylim=(0, most), xlabel=curve.unit, title="" if only else curve.name)
        panel.set_xticks(range(len(labels)), labels)
        panel.grid(axis="y")
    for panel in panels[len(chosen) :]:
        panel.remove()
    if only is None:
        figure.suptitle(f'NME of {found.faces} faces under corruption; "none" is the original')
        # matplotlib leaves names that begin with an underscore out of legends.
        names = [f"\u200b{name}" if name.startswith("_") else name for name in found.models]
        figure.legend(panels[0].lines, names, loc="outside lower left")
    return figure


def cost_chart(report: QuantizationReport) -> Figure:
    """Draw the landmark deviation that each layer causes alone in 8 bits: over all faces and in large pose."""
    figure, axes = _axes(9, 1.2 + 0.2 * len(report.costs))
    places = range(len(report.costs))
    axes.barh(places, [cost.large_pose for cost in report.costs], 0.8, color=_SERIES[1], label="large pose")
    axes.barh(places, [cost.deviation for cost in report.costs], 0.5, color=_SERIES[0], label="all faces")
    for place, cost in zip(places, report.costs, strict=True):
        note = "float" if cost.layer in report.float_layers else f"{cost.sqnr:.0f} dB" if cost.sqnr else ""
        words = f"{cost.deviation:.5f}  {note}"
        axes.text(1.01, place, words, transform=axes.get_yaxis_transform(), verticalalignment="center", size=8)
    axes.set_yticks(places, [_short(cost.layer) for cost in report.costs], size=8)
    axes.set(ylim=(len(places) - 0.5, -0.5), xlabel="landmark deviation, fraction of the eye distance")
    axes.set_title("Landmark deviation with one layer alone in 8 bits", loc="left")
    axes.grid(axis="x")
    axes.legend(loc="lower right")
    return figure


def bench_chart(report: BenchReport) -> Figure:
    """Draw a bar a file, grouped by threads and faces: the median, the 95 % interval and the ratio in words."""
    cases = range(len(report.models[0].timings))
    rows = [(model, model.timings[case]) for case in cases for model in report.models]
    figure, axes = _axes(11, 1.4 + 0.32 * len(rows) + 0.15 * len(cases))
    gaps = [place + 0.4 * (place // len(report.models)) for place in range(len(rows))]
    for place, (_, timing) in zip(gaps, rows, strict=True):
        low, value, high = (
            time / timing.batch for time in (timing.median_ms.low, timing.median_ms.value, timing.median_ms.high)
        )
        axes.barh(place, value, 0.7, color=_VERDICTS[timing.verdict])
        axes.errorbar(value, place, xerr=[[max(value - low, 0)], [max(high - value, 0)]], color="#282828", capsize=3)
        axes.annotate(_timing_words(timing), (high, place), (6, 0), textcoords="offset points", va="center")
    plural = [("" if timing.threads == 1 else "s", "" if timing.batch == 1 else "s") for _, timing in rows]
    names = [
        f"{_short(model.name)}\n{timing.threads} thread{ends[0]}, {timing.batch} face{ends[1]}"
        for (model, timing), ends in zip(rows, plural, strict=True)
    ]
    axes.set_yticks(gaps, names, size=8)
    axes.set(ylim=(gaps[-1] + 0.6, -0.6), xlabel="milliseconds a face, median and 95 % interval; shorter is faster")
    machine = f"{report.environment.processor}, onnxruntime {report.environment.onnxruntime}"
    reference = report.settings.reference
    axes.set_title(machine if reference is None else f"{machine}; ratios to {_short(reference)}", loc="left")
    axes.grid(axis="x")
    return figure


def _timing_words(timing: Timing) -> str:
    if timing.verdict is SpeedVerdict.TOO_NOISY:
        return "too noisy to tell"
    words = f"{timing.median_ms.value / timing.batch:.3g} ms"
    if timing.ratio is not None:
        words += f", {timing.ratio.value:.2f} x ({timing.ratio.low:.2f} to {timing.ratio.high:.2f})"
    return words


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _line(index: int) -> dict[str, Any]:
    """Style of the index-th series; later ones are dashed, so that equal curves are all seen."""
    dashes = "-" if index == 0 else (3.0 * index, (6.0 - min(index, 3), 1.5 * index))
    return {"color": _SERIES[index % len(_SERIES)], "linestyle": dashes, "linewidth": 1.6}


def _short(name: str) -> str:
    """The end of a long name, which tells files apart."""
    return name if len(name) <= 40 else f"...{name[-37:]}"
