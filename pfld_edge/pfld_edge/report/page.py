"""The HTML report on a verification: one page that loads nothing."""

import json
import math
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import onnxruntime
from markupsafe import Markup

from pfld_edge.drawing import OPEN_REGIONS, regions
from pfld_edge.report.charts import drift_chart, error_chart, robustness_chart, to_svg
from pfld_edge.report.faces import face_overlays
from pfld_edge_calib.evaluation.drift import Verdict
from pfld_edge_calib.evaluation.robustness import Robustness
from pfld_edge_calib.evaluation.verification import ModelResult, Verification, shipping_verdict
from pfld_edge_calib.files import write_atomically
from pfld_edge_convert.benchmark.processor import environment
from pfld_edge_convert.model_file import load_onnx
from pfld_edge_convert.quantization.mixed_precision import QuantizationReport, read_report
from pfld_edge_runtime.arrays import Float32Array, Float64Array

_FOLDER = Path(__file__).parent
_SAME = 1e-4
"""Mean deviation, in eye distances, below which landmarks are the reference's own."""
_HEAT_STEPS, _FACE_SIDE, _FACE_EDGE = 5, 320.0, 22.0


def write_report(found: Verification, path: Path, robustness: Robustness | None = None) -> None:
    """Write the report into an HTML file, with curves under corruption where they were measured.

    Raises:
        OSError: The file can't be written.
    """
    compared = [model for model in found.models if model.deviation is not None]
    moved = [model for model in compared if model.deviation is not None and not model.deviation.mean < _SAME]
    # The network that will ship: the last one, INT8 before others.
    last = (compared or list(found.models))[-1]
    shipped = next((model for model in reversed(compared) if model.kind == "onnx int8"), last)
    verdict, sentence = _shipping(found)
    loader = jinja2.FileSystemLoader(_FOLDER)
    jinja = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    jinja.filters |= {"number": _number, "percent": _percent}
    page = jinja.get_template("page.html").render(
        found=found,
        title=f"Verification: {Path(found.models[-1].path).name}",
        style=Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        verdict=verdict,
        sentence=sentence,
        same=[model for model in compared if all(model is not other for other in moved)],
        moved=moved,
        shipped=shipped,
        errors=_svg("Cumulative error curves of each network", error_chart, found),
        drifts=[
            _svg(f"Drift of {m.name} by subset, with 95 % intervals", drift_chart, m, found.settings.max_drift)
            for m in moved
        ],
        heat=_heat_faces(found, moved),
        robustness=robustness,
        corruptions=[] if robustness is None else _corruptions(robustness),
        overlays=face_overlays(found, shipped),
        quantization=_quantization(found.models),
        facts=_facts(found),
        contracts=[(model, _contract(model)) for model in found.models],
    )
    write_atomically(path, page.encode(errors="replace"))  # names of files need not be UTF-8


def _svg(title: str, *drawing: Any) -> Markup:  # noqa: ANN401 - a chart and its arguments
    return Markup(to_svg(title, *drawing))  # noqa: S704 - names in it are escaped


def _number(value: float, digits: int = 4) -> str:
    """A number, or a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "\u2013"


def _percent(value: float) -> str:
    """A share with its sign, which zero has none of."""
    if not math.isfinite(value):
        return "\u2013"
    text = f"{value:+.2%}"
    return text.replace("-", "\u2212") if text.strip("+-0.%") else text[1:]


def _shipping(found: Verification) -> tuple[Verdict, str]:
    """Say whether the files may ship: the worst verdict, and a sentence."""
    # Those that may not ship first.
    words: dict[Verdict, list[str]] = {Verdict.FAIL: [], Verdict.INCONCLUSIVE: [], Verdict.PASS: []}
    for model in found.models:
        verdict, reason = shipping_verdict(found, model)
        if verdict in words:
            words[verdict].append(f"{model.name}: {reason}")
    starts = {Verdict.FAIL: "Don't ship", Verdict.INCONCLUSIVE: "Inconclusive", Verdict.PASS: "Ship it"}
    judged = [verdict for verdict, some in words.items() if some]
    if judged:
        return judged[0], " ".join(f"{starts[verdict]}: {'; '.join(words[verdict])}." for verdict in judged)
    reference = found.models[0]
    drifts = [(model.drift["all"].value, model.name) for model in found.models if model.drift is not None]
    if not drifts:
        nme = _number(reference.accuracy["all"].nme)
        return Verdict.UNJUDGED, f"{reference.name}: NME {nme} on {found.measured} faces."
    value, name = max(drifts)
    largest = f"The largest drift from {reference.name} is {_percent(value)}, of {name}."
    return Verdict.UNJUDGED, f"No budget was given. {largest}"


def _heat_faces(found: Verification, moved: Sequence[ModelResult]) -> dict[str, Any] | None:
    """Where on the face landmarks deviate: the mean shape, and a dot a landmark; None where nothing is to be seen."""
    deviations = [model.deviation.by_landmark for model in moved if model.deviation is not None]
    most = max((float(values.max()) for values in deviations), default=0.0)
    if not math.isfinite(most) or most == 0:
        return None
    shape = _mean_shape(found.truth)
    lines = []
    for name, indices in regions(found.scheme).items():
        closed = indices[:1] if name not in OPEN_REGIONS and len(indices) > 2 else []
        if len(indices) > 1:
            lines.append(" ".join(f"{x:.1f},{y:.1f}" for x, y in shape[[*indices, *closed]]))
    faces = []
    for model, values in zip(moved, deviations, strict=True):
        shades = np.minimum(_HEAT_STEPS - 1, _HEAT_STEPS * values / most).astype(int)
        dots = list(zip(*shape.T, 2.5 + 4.5 * values / most, shades, found.scheme.names, values, strict=True))
        faces.append((model.name, dots, found.scheme.names[int(values.argmax())]))
    steps = [(most * i / _HEAT_STEPS, most * (i + 1) / _HEAT_STEPS) for i in range(_HEAT_STEPS)]
    return {"side": _FACE_SIDE, "lines": lines, "faces": faces, "steps": steps}


def _mean_shape(truth: Float32Array) -> Float64Array:
    """The mean of all faces, each moved and scaled to one box, ``(P, 2)`` in the picture."""
    low, high = truth.min(axis=1, keepdims=True), truth.max(axis=1, keepdims=True)
    shape = ((truth - low) / (high - low).max(axis=2, keepdims=True)).mean(axis=0).astype(np.float64)
    shape -= shape.min(axis=0)
    placed = shape / shape.max() * (_FACE_SIDE - 2 * _FACE_EDGE)
    return np.asarray(placed + (_FACE_SIDE - placed.max(axis=0)) / 2)


def _corruptions(robustness: Robustness) -> list[tuple[str, Markup]]:
    return [
        (curve.name, _svg(f"NME under {curve.name} ({curve.unit}) of each network", robustness_chart, robustness, [i]))
        for i, curve in enumerate(robustness.curves)
    ]


def _quantization(models: Sequence[ModelResult]) -> list[tuple[str, QuantizationReport]]:
    """The reports that INT8 files carry of their quantization, with the files' names."""
    loaded = ((model.name, read_report(load_onnx(Path(model.path)))) for model in models if model.kind == "onnx int8")
    return [(name, report) for name, report in loaded if report is not None]


def _facts(found: Verification) -> dict[str, str]:
    """How it was measured, for whoever repeats it."""
    machine, settings = environment((), None), found.settings
    left_out = found.given - found.measured
    try:
        own = f"pfld-edge {version('pfld-edge')}, "
    except PackageNotFoundError:
        own = ""
    return {
        "command": "pfld-edge " + shlex.join(sys.argv[1:]),
        "data": (settings.data or "the two bundled portraits") + (f", {settings.split}" if settings.data else ""),
        "faces": f"{found.measured} of {int(found.photographs.max()) + 1} photographs"
        + (f", {left_out} left out" if left_out else ""),
        "intervals": f"95 %, bootstrap over photographs, {settings.resamples} resamples, seed {settings.seed}",
        "versions": f"{own}Python {machine.python}, onnxruntime {onnxruntime.__version__}, numpy {np.__version__}",
        "processor": f"{machine.processor}, {machine.cores} cores",
        "system": machine.system,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _contract(model: ModelResult) -> str:
    record = model.contract.to_dict()
    record.pop("fingerprint", None)
    record["landmarks"] = model.contract.landmarks.name
    return json.dumps(record, indent=1, sort_keys=True)
