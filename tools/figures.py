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
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import Face, nme_per_face, open_faces, predict_landmarks, true_landmarks
from pfld_edge_calib.evaluation.drift import mean_interval, paired_drift
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_runtime import BUNDLED_MODEL

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs/figures.json"
SOURCES = ("runtime", "calib", "train", "convert", "pfld_edge", "benchmarks", "tools", "examples")
CHECKPOINTS = ("pfld-edge-s", "pfld-edge-m", "pfld-ghostone")
PUBLISHED = "PFLD_GhostOne_112_1_opt_sim.onnx"

_MARK = re.compile(r"(<!-- figure: (?P<name>[\w-]+) -->)(?P<text>.*?)(<!-- /figure -->)", re.DOTALL)

Float = NDArray[np.float64]
Figure = Callable[[], str]
FIGURES: dict[str, Figure] = {}


def figure(name: str) -> Callable[[Figure], Figure]:
    """Register the function that measures a figure and returns its Markdown."""

    def register(measure: Figure) -> Figure:
        FIGURES[name] = measure
        return measure

    return register


@dataclass(frozen=True)
class Measured:
    """A model file on the 321 faces.

    Attributes:
        size: Bytes of the file.
        nme: ``(321,)`` errors.
    """

    size: int
    nme: Float

    def row(self, name: str, reference: "Measured | None" = None) -> str:
        """One row of a table: NME, drift from the reference, size."""
        low, high = mean_interval(self.nme, photographs()) or (np.nan, np.nan)
        drift = "" if reference is None else self.drift(reference)
        interval = f"{self.nme.mean():.4f} ({low:.4f} to {high:.4f})"
        return f"| {name} | {interval} | {drift} | {self.size / 1000:.0f} kB |"

    def drift(self, reference: "Measured") -> str:
        """Relative change of the NME, with its interval."""
        found = paired_drift(self.nme, reference.nme, photographs())
        return f"{found.value:+.2%} ({found.low:+.2%} to {found.high:+.2%})".replace("%", " %")


@cache
def shared() -> Path:
    """Folder of the shared data."""
    if not os.environ.get("PFLD_EDGE_SHARED"):
        raise click.UsageError("set PFLD_EDGE_SHARED to the folder that holds data/WFLW and data/WFLW_more")
    return Path(os.environ["PFLD_EDGE_SHARED"])


@cache
def test_faces() -> tuple[Face, ...]:
    """The 321 labelled faces of the WFLW test split; for measuring only."""
    return tuple(face for name in ("WFLW", "WFLW_more") for face in open_faces(shared() / "data" / name).load())


@cache
def photographs() -> NDArray[np.int64]:
    """``(321,)`` a number for the photograph of each face."""
    return np.unique([str(face.image) for face in test_faces()], return_inverse=True)[1].astype(np.int64)


def measured(path: Path) -> Measured:
    """Run a model on the 321 faces."""
    network, faces = open_landmark_model(path), test_faces()
    truth = true_landmarks(faces, network.contract)
    found = predict_landmarks(network, faces)
    return Measured(path.stat().st_size, nme_per_face(found, truth, network.contract.landmarks.normalizing_points))


def cli(*arguments: object) -> None:
    """Run a `pfld-edge` command."""
    command = [sys.executable, "-m", "pfld_edge", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    if done.returncode:
        raise click.ClickException(f"pfld-edge {' '.join(map(str, arguments))}: {done.stderr.strip()[-500:]}")


def converted(checkpoint: Path, folder: Path) -> tuple[Measured, Measured]:
    """Convert to fp32 and INT8, calibrated on 256 faces of unlabelled WFLW photographs, and measure both."""
    output, wflw = folder / f"{checkpoint.stem}.onnx", shared() / "data/WFLW"
    calibration = ["--calibration", wflw / "unlabelled_images.txt", "--images", wflw / "WFLW_images"]
    detector = ["--detector", shared() / "models/detectors/yunet_n_dynamic.onnx"]
    # Slower files too: sizes and accuracy are measured here, not speed.
    cli("convert", checkpoint, "--int8", *calibration, *detector, "--allow-slower", "-o", output)
    return measured(output), measured(output.with_suffix(".int8.onnx"))


@cache
def ghostone() -> tuple[Measured, Measured, Measured]:
    """The published PFLD-GhostOne: the file itself, and through import-onnx and convert in fp32 and INT8."""
    published = shared() / "models/reference" / PUBLISHED
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "ghostone.pth")
        cli("import-onnx", published, "-o", checkpoint)
        return measured(published), *converted(checkpoint, Path(folder))


@figure("accuracy")
def accuracy() -> str:
    """NME, drift and size of the published network and of ours, fp32 and INT8."""
    published, fp32, int8 = ghostone()
    rows = [
        "| file | NME (95 % interval) | INT8 against fp32 (95 % interval) | size |",
        "|---|---|---|---|",
        published.row("PFLD-GhostOne, published ONNX file"),
        fp32.row("PFLD-GhostOne through `import-onnx` and `convert`"),
        int8.row("the same in INT8", fp32),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in CHECKPOINTS:
            fp32, int8 = converted(ROOT / f"checkpoints/{name}.pth", Path(folder))
            rows += [fp32.row(f"`{name}`, fp32"), int8.row("the same in INT8", fp32)]
    return "\n".join(rows)


@figure("bundled-accuracy")
def bundled_accuracy() -> str:
    """NME, drift and size of the bundled INT8 model and of the checkpoint that it was made from."""
    checkpoint, int8 = measured(ROOT / "checkpoints/pfld-edge-s.pth"), measured(BUNDLED_MODEL)
    head = ["| file | NME (95 % interval) | INT8 against fp32 (95 % interval) | size |", "|---|---|---|---|"]
    return "\n".join([*head, checkpoint.row("`pfld-edge-s.pth`"), int8.row("the bundled INT8 model", checkpoint)])


@figure("ghostone-drift")
def ghostone_drift() -> str:
    """Drift of the published PFLD-GhostOne in INT8, as a phrase."""
    _, fp32, int8 = ghostone()
    return f"{int8.drift(fp32)} NME on {len(test_faces())} faces"


@figure("bundled-size")
def bundled_size() -> str:
    """Size of the bundled INT8 model."""
    return f"{BUNDLED_MODEL.stat().st_size / 1000:.0f} kB"


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
        replace_file(RECORD, json.dumps({key: record[key] for key in sorted(record)}, indent=1) + "\n")
    return record


def replace_file(path: Path, text: str) -> None:
    """Write under a temporary name and rename."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


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
            replace_file(path, after)
            click.echo(f"{path.relative_to(ROOT)} changed")


if __name__ == "__main__":
    main()
