"""Runs the files of one quantization in their runtimes and compares their landmarks with those of the QOperator file.

    pfld-edge convert face.pth --int8 --format qoperator --format qdq --format qdq-int8 --format litert
    OMP_NUM_THREADS=1 python benchmarks/formats.py face.onnx --data WFLW [--faces 321]

Needs the packages openvino and ai-edge-litert, and runs tflite-micro where it is installed. docs/formats.md has the
table.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import onnx
import openvino
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from harness import print_table
from pfld_edge_calib import cut_faces, open_faces
from pfld_edge_convert.formats import FORMATS
from pfld_edge_convert.model_file import run_model
from pfld_edge_convert.model_stats import layer_weights
from pfld_edge_convert.quantization.mixed_precision import deviation_per_face
from pfld_edge_runtime import LandmarkModel

Crops = NDArray[np.uint8]
Runner = Callable[[Crops], NDArray[np.float32]]

_ARENA = 4 << 20


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="A WFLW folder or a CSV.")
@click.option("--faces", type=click.IntRange(1), default=10_000, help="Most faces.")
def main(output: Path, data: Path, faces: int) -> None:
    """Compare the formats of OUTPUT, the float file beside which they were written."""
    files = {name: output.with_suffix(kind.suffix) for name, kind in FORMATS.items()}
    reference = LandmarkModel.open(files["qoperator"])
    batches = cut_faces(open_faces(data).load()[:faces], reference.contract)
    crops = np.concatenate([batch.crops for batch in batches])
    expected = reference.predict(crops).reshape(len(crops), -1)
    click.echo(f"{output.stem}, {len(crops)} faces of {data.name}; deviations in eye distances")
    ends = reference.contract.landmarks.normalizing_points

    def row(name: str, runtime: str, run: Runner, layers: str) -> list[str]:
        far = deviation_per_face(run(crops).reshape(expected.shape), expected, ends)
        return [files[name].name, runtime, f"{far.mean():.5f}", f"{far.max():.5f}", layers]

    head = ["file", "runtime", "mean deviation", "largest of a face", "layers in integers"]
    print_table(head, (row(*run) for run in _runs(files)))


def _runs(files: dict[str, Path]) -> Iterator[tuple[str, str, Runner, str]]:
    """Format, runtime, how it runs, and how many layers run in integers."""
    for name in ("qdq", "qdq-int8"):
        model = onnx.load(files[name])
        yield name, "onnxruntime", partial(run_model, model), ""
        apart = partial(run_model, model, fuse_qdq=False)
        yield name, "onnxruntime, QDQ not fused", apart, "0"
        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.compile_model(files[name], "CPU", settings)
        total = len(layer_weights(model))
        yield name, "OpenVINO", lambda crops, compiled=compiled: compiled(crops)[0], f"{_integer(compiled)} of {total}"
    content = files["litert"].read_bytes()
    yield "litert", "LiteRT, XNNPACK", LandmarkModel.open(content).predict, ""
    yield "litert", "LiteRT, reference kernels", partial(_reference, content), ""
    if find_spec("tflite_micro"):
        yield "litert", "TensorFlow Lite Micro", partial(_micro, content), ""


def _integer(compiled: openvino.CompiledModel) -> int:
    """Convolutions and products that OpenVINO runs on 8-bit inputs."""
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    layers = [node for node in nodes if node["layerType"].astype(str) in ("Convolution", "FullyConnected")]
    return sum(node["runtimePrecision"].astype(str) in ("u8", "i8") for node in layers)


def _reference(content: bytes, crops: Crops) -> NDArray[np.float32]:
    opened = Interpreter(model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    opened.allocate_tensors()
    found = []
    for crop in crops:
        opened.set_tensor(opened.get_input_details()[0]["index"], crop[None])
        opened.invoke()
        found.append(opened.get_tensor(opened.get_output_details()[0]["index"]))
    return np.concatenate(found)


def _micro(content: bytes, crops: Crops) -> NDArray[np.float32]:
    from tflite_micro.python.tflite_micro import runtime

    opened = runtime.Interpreter.from_bytes(content, arena_size=_ARENA)
    opened.print_allocations()
    found = []
    for crop in crops:
        opened.set_input(crop[None], 0)
        opened.invoke()
        found.append(opened.get_output(0).copy())
    return np.concatenate(found)


if __name__ == "__main__":
    main()
