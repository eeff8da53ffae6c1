"""Times models and the crop against references, interleaved, so that what slows the machine slows all of them.

Quote the ratios: milliseconds drift from run to run and from machine to machine, ratios far less.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import cv2
import numpy as np

from pfld_edge_convert.benchmark.turns import take_turns
from pfld_edge_convert.network import open_network
from pfld_edge_runtime import BUNDLED_MODEL, PfldEdgeError, crop_faces, crop_windows, fingerprint_image

DEMO_FP32 = Path("demo-out/pfld-edge-s.onnx")


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), help="ONNX file that the others are divided by.")
@click.option("--rounds", type=click.IntRange(1), default=300, show_default=True, help="Timed calls of each.")
@click.option("--threads", type=click.IntRange(0), default=1, show_default=True, help="onnxruntime threads.")
def main(models: tuple[Path, ...], reference: Path | None, rounds: int, threads: int) -> None:
    """Print medians of one face through each of MODELS (the bundled INT8 file and `make demo`'s fp32 file by default).

    Without --reference the first model is the reference.
    """
    chosen = list(models) or [path for path in (BUNDLED_MODEL, DEMO_FP32) if path.is_file()]
    files = ([] if reference is None else [reference]) + chosen
    try:
        calls = {path.name: one_face(path, threads) for path in files}
    except PfldEdgeError as error:
        raise click.ClickException(str(error)) from error
    if calls:
        report("model, one face", medians(calls, rounds))
    report("crop, 112 pixels", medians(crops(), rounds))


def one_face(path: Path, threads: int) -> Callable[[], object]:
    """Make a call that runs a model on one crop, normalization included."""
    network = open_network(path, threads)
    crop = fingerprint_image(1, network.contract.input_size)[None]
    return lambda: network.predict(crop)


def crops() -> dict[str, Callable[[], object]]:
    """Make calls that cut a face of 400 pixels, the first with cv2 alone."""
    photo = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    box = [[700, 300, 1100, 700]]
    windows = crop_windows(box, 1.2)
    (x, y), side = windows.corners[0].tolist(), int(windows.sizes[0])

    def with_cv2() -> object:
        return cv2.resize(photo[y : y + side, x : x + side], (112, 112), interpolation=cv2.INTER_LINEAR)

    return {"cv2.resize": with_cv2, "pfld_edge_runtime": lambda: crop_faces(photo, crop_windows(box, 1.2), 112)}


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time the calls in turn; median milliseconds of each."""
    cv2.setNumThreads(1)
    return {name: median(values) for name, values in take_turns(calls, rounds).items()}


def report(title: str, found: dict[str, float]) -> None:
    """Print milliseconds, and each as a multiple of the first."""
    reference = next(iter(found.values()))
    click.echo(f"{title:40} {'median ms':>10} {'ratio':>7}")
    for name, value in found.items():
        click.echo(f"  {name:38} {value:10.3f} {value / reference:7.2f}")


if __name__ == "__main__":
    main()
