"""Measures the figures in README.md and docs/, and pastes them between their marks.

    PFLD_EDGE_SHARED=<folder> python tools/figures.py [NAME...]     (or: make figures FIGURES="NAME...")
    python tools/figures.py --paste                                 (no measurement: docs get what figures.json holds)

A page marks a figure with ``<!-- figure: NAME -->`` and ``<!-- /figure -->``; what stands between them is replaced.
Measured text is kept in docs/figures.json, and a test holds the pages to it. NME is normalized by the outer eye
corners. Intervals are 95 % BCa bootstrap intervals over photographs.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import click
import numpy as np

from pfld_edge_calib import Face, nme_per_face, open_faces, predict_landmarks, true_landmarks
from pfld_edge_calib.evaluation.drift import mean_interval, paired_drift
from pfld_edge_calib.files import write_atomically
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_runtime import BUNDLED_MODEL, FAST_MODEL
from pfld_edge_runtime.arrays import Float64Array, Int64Array

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs/figures.json"

_MARK = re.compile(r"(<!-- figure: (?P<name>[\w-]+) -->)(?P<text>.*?)(<!-- /figure -->)", re.DOTALL)


@cache
def shared() -> Path:
    """Folder of the shared data."""
    if not os.environ.get("PFLD_EDGE_SHARED"):
        raise click.UsageError("set PFLD_EDGE_SHARED to the folder that holds data/WFLW, data/WFLW_more and models/")
    return Path(os.environ["PFLD_EDGE_SHARED"])


@cache
def test_faces() -> tuple[Face, ...]:
    """The 321 labelled faces of the WFLW test split; for measuring only."""
    return tuple(face for name in ("WFLW", "WFLW_more") for face in open_faces(shared() / "data" / name).load())


@cache
def photographs() -> Int64Array:
    """``(321,)`` a number for the photograph of each face."""
    return np.unique([str(face.image) for face in test_faces()], return_inverse=True)[1].astype(np.int64)


def nmes(path: Path) -> Float64Array:
    """``(321,)`` errors of a model file."""
    network, faces = open_landmark_model(path), test_faces()
    truth = true_landmarks(faces, network.contract)
    return nme_per_face(predict_landmarks(network, faces), truth, network.contract.landmarks.normalizing_points)


def row(name: str, path: Path, nme: Float64Array, reference: Float64Array | None = None) -> str:
    """One row of a table: NME, relative change from the reference, size."""
    low, high = mean_interval(nme, photographs()) or (np.nan, np.nan)
    drift = ""
    if reference is not None:
        found = paired_drift(nme, reference, photographs())
        drift = f"{found.value:+.2%} ({found.low:+.2%} to {found.high:+.2%})".replace("%", " %")
    size = f"{path.stat().st_size / 1000:.0f} kB"
    return f"| {name} | {nme.mean():.4f} ({low:.4f} to {high:.4f}) | {drift} | {size} |"


def bundled_accuracy() -> str:
    """NME, drift and size of the published network, of the two bundled INT8 models and of their checkpoints."""
    published = shared() / "models/reference/PFLD_GhostOne_112_1_opt_sim.onnx"
    rows = [
        "| file | NME (95 % interval) | INT8 against fp32 (95 % interval) | size |\n|---|---|---|---|",
        row("PFLD-GhostOne, published ONNX file", published, nmes(published)),
    ]
    for name, bundled in (("`pfld-edge-m`, the default", BUNDLED_MODEL), ("`pfld-edge-s`", FAST_MODEL)):
        checkpoint = ROOT / "checkpoints" / f"{bundled.name.split('.')[0]}.pth"
        reference = nmes(checkpoint)
        rows += [
            row(f"{name}: checkpoint", checkpoint, reference),
            row(f"{name}: bundled INT8 model", bundled, nmes(bundled), reference),
        ]
    return "\n".join(rows)


def bundled_size() -> str:
    """Sizes of the bundled INT8 models."""
    return " and ".join(f"{model.stat().st_size / 1000:.0f} kB" for model in (BUNDLED_MODEL, FAST_MODEL))


FIGURES: dict[str, Callable[[], str]] = {"bundled-accuracy": bundled_accuracy, "bundled-size": bundled_size}
"""The functions that measure figures, by name; they return Markdown."""


def pages() -> list[Path]:
    """README and all pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def pasted(page: str, record: Mapping[str, str]) -> str:
    """Replace what stands between a page's marks.

    Raises:
        KeyError: A mark names a figure that the record lacks.
        ValueError: A mark is not closed.
    """
    if page.count("<!-- figure:") != len(_MARK.findall(page)):
        raise ValueError("a figure's mark is damaged or not closed with <!-- /figure -->")

    def block(found: re.Match[str]) -> str:
        text = record[found["name"]]
        # Markdown reads a table only after an empty line.
        return f"{found[1]}\n\n{text}\n\n{found[4]}" if "\n" in text else f"{found[1]}{text}{found[4]}"

    return _MARK.sub(block, page)


def measure(names: Sequence[str]) -> dict[str, str]:
    """Measure figures, all where none is named, and keep them in the record."""
    record: dict[str, str] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    for name in names or FIGURES:
        record[name] = FIGURES[name]()
        click.echo(f"{name}: {record[name]}")
        text = json.dumps({key: record[key] for key in sorted(record)}, indent=1)
        write_atomically(RECORD, f"{text}\n".encode())
    return record


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(FIGURES)))
@click.option("--paste", is_flag=True, help="Measure nothing; only paste what docs/figures.json holds.")
def main(names: tuple[str, ...], paste: bool) -> None:
    """Measure figures NAMES (all without), record them in docs/figures.json and paste them into README.md and docs/."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if paste else measure(names)
    for path in pages():
        before = path.read_text(encoding="utf-8")
        try:
            after = pasted(before, record)
        except KeyError as error:
            raise click.ClickException(
                f"{path}: no figure {error}: one of {', '.join(FIGURES)}, measured first"
            ) from error
        except ValueError as error:
            raise click.ClickException(f"{path}: {error}") from error
        if after != before:
            write_atomically(path, after.encode())
            click.echo(f"{path.relative_to(ROOT)} changed")


if __name__ == "__main__":
    main()
