"""Runs a network on an NVIDIA GPU, with CUDA and with TensorRT (fp32, fp16, QDQ): throughput, landmark deviation.

    pip uninstall -y onnxruntime && pip install onnxruntime-gpu tensorrt
    python benchmarks/gpu.py face.onnx --qdq face.qdq-int8.onnx

Deviations are from the float file on the CPU, in eye distances, on 64 crops of the bundled portraits.
"""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import onnxruntime

from harness import medians, print_table
from pfld_edge_convert.calibration import sample_crops
from pfld_edge_convert.quantization.mixed_precision import deviation_per_face
from pfld_edge_runtime import DEVICES, LandmarkModel, prepare_input
from pfld_edge_runtime.arrays import Float32Array, Uint8Array
from pfld_edge_runtime.session import provider_options

BATCHES = (1, 8, 64)
FASTER = {"fp32": {}, "fp16": {"trt_fp16_enable": "1"}, "QDQ": {"trt_int8_enable": "1", "trt_fp16_enable": "1"}}
"""TensorRT's options for each precision (onnxruntime's page on the TensorRT execution provider)."""

_ROUNDS = 100


def cases(model: Path, qdq: Path | None) -> Iterator[tuple[str, str, Path, dict[str, str]]]:
    """Device, precision, file, options of the provider."""
    yield "cuda", "fp32", model, provider_options("cuda", 1)
    for precision, options in FASTER.items():
        file = qdq if precision == "QDQ" else model
        if file is not None:
            yield "tensorrt", precision, file, options


def measured(file: Path, device: str, options: dict[str, str], crops: Uint8Array) -> tuple[Float32Array, list[str]]:
    """Landmarks of the crops, ``(64, 2 P)``, and thousands of faces a second for each batch, by wall time."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), settings, providers=[(DEVICES[device], options)])
    if DEVICES[device] not in session.get_providers():
        raise RuntimeError("the provider did not load, a library of its driver is missing")
    contract = LandmarkModel.from_session(session).contract
    name, throughput = session.get_inputs()[0].name, []
    for batch in BATCHES:
        feed = {name: prepare_input(crops[:batch], contract)}
        found = session.run(None, feed)[0]  # the first call of a size is slow: TensorRT compiles
        taken = medians({"": partial(session.run, None, feed)}, _ROUNDS, time.perf_counter)[""]
        throughput.append(f"{batch / taken:.2f}")
    return found.reshape(len(crops), -1), throughput


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--qdq", type=click.Path(path_type=Path, exists=True), help="The QDQ file of the same network.")
def main(model: Path, qdq: Path | None) -> None:
    """Measure MODEL, a float ONNX file with its contract."""
    if DEVICES["cuda"] not in onnxruntime.get_available_providers():
        raise click.ClickException("no GPU here: this onnxruntime has no CUDA; install onnxruntime-gpu beside a GPU")
    reference = LandmarkModel.open(model)
    crops = sample_crops(reference.contract, BATCHES[-1])
    expected = reference.predict(crops).reshape(len(crops), -1)
    ends = reference.contract.landmarks.normalizing_points

    def row(device: str, precision: str, file: Path, options: dict[str, str]) -> list[str]:
        try:
            found, throughput = measured(file, device, options, crops)
        except Exception as error:  # noqa: BLE001 - providers raise anything; the other rows still count
            return [device, precision, " ".join(str(error).split())[:100], *[""] * len(BATCHES)]
        return [device, precision, f"{deviation_per_face(found, expected, ends).mean():.5f}", *throughput]

    head = ["device", "precision", "mean deviation", *(f"thousand faces/s, batch {batch}" for batch in BATCHES)]
    print_table(head, (row(*case) for case in cases(model, qdq)))


if __name__ == "__main__":
    main()
