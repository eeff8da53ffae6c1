"""`pfld-edge convert`: from a checkpoint to files for devices."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pfld_edge.options import (
    BUNDLED,
    PATH,
    SHARE,
    all_of,
    detector_option,
    output_option,
    reading_options,
    result_file,
    strict_option,
)

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from pfld_edge.console import SkippedFiles
    from pfld_edge_convert.int8_stage import Int8Outcome, LabelledCrops
    from pfld_edge_convert.pipeline import ConversionReport
    from pfld_edge_runtime import Contract

_TARGETS = ("portable", "x86-vnni", "x86-avx2", "arm64")
_RANGES = ("auto", "minmax", "faces", "moving-average", "percentile", "mse", "entropy")
_FORMATS = ("qoperator", "qdq", "qdq-int8", "litert", "litert-micro")
_METHODS = {"percentile": "percentile:99.99", "faces": "faces:98"}
_FIELDS = {"color": "color_order", "crop_margin": "margin"}
"""Fields of the contract that options name otherwise."""
_LARGE_DEVIATION = 0.006
"""Mean landmark distance from fp32 in eye distances past which the NME of published networks rose by 0.3 % and more."""
_READING = ("output_name", "output_order", "output_space")

network_options = all_of(
    click.option(
        "--network",
        metavar="MODULE:FACTORY",
        help="A torch network of your own: CHECKPOINT is its state dict, FACTORY() builds it.",
    ),
    click.option("--contract", "given", type=PATH, help="The contract as JSON, for what the options below leave out."),
    click.option("--color", type=click.Choice(["bgr", "rgb"]), help="Order of the input's colours."),
    click.option("--mean", metavar="M[,M,M]", help="Subtracted from pixels of 0 to 255, in the order of the colours."),
    click.option("--scale", metavar="S[,S,S]", help="Divides them then: --mean 0 --scale 255 for pixels of 0 to 1."),
    click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="Of the input; as its shape says if left out."),
    click.option(
        "--input-size", type=click.IntRange(16, 4096), help="Side of the input, where its shape leaves it free."
    ),
    click.option("--crop-margin", type=float, help="Side of the crop over the landmarks' tight box, e.g. 1.2."),
    click.option("--landmarks", metavar="wflw-98|ibug-68|N", help="Order of the points, or their number."),
    reading_options,
)


@click.command("convert")
@click.argument("checkpoint", metavar="MODEL", type=PATH)
@output_option(
    "The ONNX file; MODEL's name where left out, NAME.edge.onnx for NAME.onnx.",
    result_file("output", ".onnx"),
    required=False,
)
@click.option("--int8", is_flag=True, help="Also write OUTPUT.int8.onnx, statically quantized; it takes raw pixels.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(_FORMATS),
    multiple=True,
    help="File to write with --int8, may be given several times: qoperator (OUTPUT.int8.onnx, the default, for "
    "onnxruntime on a CPU), qdq or qdq-int8 (OUTPUT.qdq.onnx, uint8 or int8 activations, for OpenVINO and others), "
    "litert (OUTPUT.tflite, for LiteRT on phones), litert-micro (OUTPUT.micro.tflite, for TensorFlow Lite Micro).",
)
@click.option(
    "--end-to-end",
    is_flag=True,
    help="Also write OUTPUT.e2e.onnx (and OUTPUT.int8.e2e.onnx): photograph and boxes in, landmarks in pixels out.",
)
@click.option("--target", type=click.Choice(_TARGETS), default="portable", show_default=True, help="Processor family.")
@click.option(
    "--calibration",
    type=PATH,
    help="Faces for --int8: a WFLW folder, a CSV of points, or photographs: a folder (where a boxes.csv may say where "
    "faces are) or a text file that lists them; the two bundled portraits, varied, where left out.",
)
@click.option("--images", type=PATH, help="Folder of the images of a calibration CSV or list.")
@detector_option(", in photographs to calibrate on; bundled where left out")
@strict_option
@click.option("--faces", type=click.IntRange(min=1), default=256, show_default=True, help="Most calibration faces.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the choice of those faces.")
@click.option("--jitter/--no-jitter", default=True, show_default=True, help="Move their boxes as detectors err.")
@click.option("--cache/--no-cache", default=True, show_default=True, help="Keep the cut faces for the next run.")
@click.option(
    "--ranges",
    type=click.Choice(_RANGES),
    default="auto",
    show_default=True,
    help="How far grids reach; auto tries all and keeps what moves held-back landmarks least.",
)
@click.option(
    "--max-drift",
    type=SHARE,
    help="Largest NME increase, e.g. 0.3%, at its interval's upper end; layers stay in float until it holds.",
)
@click.option(
    "--data",
    type=PATH,
    help="Labelled faces for --max-drift, none of them calibrated on: a WFLW folder (its test list) or a CSV.",
)
@click.option("--data-images", type=PATH, help="Folder of that CSV's images.")
@click.option(
    "--max-deviation",
    type=click.FloatRange(min=0, min_open=True),
    help="The same without labels: largest mean distance of landmarks from fp32 on calibration faces that are held "
    "back, in eye distances, e.g. 0.005.",
)
@click.option(
    "--finetune",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Fit integer weights and biases to the fp32 landmarks of varied calibration faces.",
)
@click.option("--allow-slower", is_flag=True, help="Keep an INT8 file that is slower than fp32 on this machine.")
@network_options
def convert_command(
    checkpoint: Path,
    output: Path | None,
    int8: bool,
    formats: tuple[str, ...],
    end_to_end: bool,
    target: str,
    calibration: Path | None,
    images: Path | None,
    detector: str | None,
    strict: bool,
    faces: int,
    seed: int,
    jitter: bool,
    cache: bool,
    ranges: str,
    max_drift: float | None,
    data: Path | None,
    data_images: Path | None,
    max_deviation: float | None,
    finetune: float | None,
    allow_slower: bool,
    network: str | None,
    **told: Any,  # noqa: ANN401 - `network_options`
) -> None:
    """Turn MODEL into a small ONNX file that carries its contract, and with --int8 into a second one.

    MODEL is a checkpoint, or any ONNX file of a network that maps an image to landmarks. What such a file doesn't say
    is told by --color, --mean, --scale, --crop-margin and --landmarks; `pfld-edge contract --find` looks for it.

    With --end-to-end each gets a twin that apps in any language run without cropping or normalizing anything.
    Every step is checked on faces; the tables say what it changed. Exits with status 1, and writes nothing, where
    --max-drift or --max-deviation can't be held or the INT8 file is slower than fp32; with 2 where photographs of
    --calibration could not be read, which are skipped and named.
    """
    given = {"format": formats, "calibration": calibration, "detector": detector, "max-drift": max_drift, "data": data}
    given |= {"max-deviation": max_deviation, "finetune": finetune}
    needless = [name for name, value in given.items() if value not in (None, ())]
    if needless and not int8:
        raise click.UsageError(f"--{needless[0]} needs --int8")
    if max_drift is not None and data is None:
        raise click.UsageError("--max-drift needs --data: labelled faces, none of them calibrated on")
    if max_drift is not None and max_deviation is not None:
        raise click.UsageError("--max-drift and --max-deviation are two measures of one budget: give one")
    if detector is not None and calibration is None:
        raise click.UsageError(
            "--detector needs --calibration: a folder of photographs, or a text file that lists them"
        )
    is_onnx = checkpoint.suffix.lower() == ".onnx"
    file = checkpoint.with_suffix(".edge.onnx" if is_onnx else ".onnx") if output is None else output
    if file.resolve() == checkpoint.resolve():
        raise click.UsageError(f"{file} would be written over: give another name by --output")
    if is_onnx and network is not None:
        raise click.UsageError("--network belongs to a checkpoint: an ONNX file holds its network")

    from pfld_edge.console import SkippedFiles, note, note_faceless, note_left_out, progress_bar
    from pfld_edge_calib.calibration import is_photo_folder, needs_detector
    from pfld_edge_convert.calibration import CalibrationSource, calibration_crops, sample_crops
    from pfld_edge_convert.errors import FellShortError
    from pfld_edge_convert.int8_stage import Int8Request
    from pfld_edge_convert.landmark_models import open_landmark_model
    from pfld_edge_convert.model_file import onnx_bytes
    from pfld_edge_convert.pipeline import convert
    from pfld_edge_convert.quantization.settings import QuantizationSettings
    from pfld_edge_runtime import LandmarkModel

    model: nn.Module | onnx.ModelProto
    graph, request, skip = None, None, SkippedFiles(strict=strict)
    if is_onnx or network is not None or any(value is not None for value in told.values()):
        graph, contract = opened_graph(checkpoint, network, **told)
        model = graph
    else:
        model, contract = opened_checkpoint(checkpoint)
    if int8:
        if detector is None and calibration is not None and needs_detector(calibration):
            detector = BUNDLED
            note("the bundled detector finds the faces of --calibration; --detector takes others")
        float_model = None
        if detector is not None:
            strange = None if graph is None else onnx_bytes(graph, contract)
            float_model = open_landmark_model(checkpoint) if strange is None else LandmarkModel.open(strange)
        source = CalibrationSource(calibration, images, detector, float_model, faces, seed, jitter, cache)
        if calibration is not None and is_photo_folder(calibration):
            note_left_out(calibration)
        with progress_bar("photographs searched") as advance:
            chosen = calibration_crops(source, contract, advance, skip)
        note_faceless(chosen.faceless)
        for warning in chosen.warnings:
            note(warning)
        if calibration is None:
            note("no --calibration: INT8 ranges come from two bundled portraits; your own faces make them better")
        method = _METHODS.get(ranges, ranges)
        request = Int8Request(
            chosen.crops,
            chosen.source,
            QuantizationSettings(target=target, ranges=method),
            max_drift,
            None if data is None else judged_faces(data, data_images, contract, skip),
            allow_slower,
            progress_bar,
            formats or ("qoperator",),
            max_deviation,
            finetune or 0.0,
            unusual=chosen.unusual,
        )
    try:
        report = convert(model, contract, file, sample_crops(contract), request, end_to_end=end_to_end)
    except FellShortError as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(1) from error
    show_report(report, contract.input_size, "torch" if graph is None else "the given network")
    skip.check()


def show_report(report: "ConversionReport", input_size: int, given: str) -> None:
    """Print what a conversion did; `given` names the network that differences are to."""
    from pfld_edge.console import console, note
    from pfld_edge.model_tables import conversion_table, int8_lines, quantization_table

    for done in report.passes:
        if done.modified:
            note(f"{done.name}: {done.detail} (output changed by {done.max_difference:.1g})")
    console().print(conversion_table(report, input_size, given))
    if report.int8 is not None:
        console().print(quantization_table(report.int8.report, most=5))
        for line in int8_lines(report.int8):
            console().print(line, markup=False, soft_wrap=True)
        note_deviation(report.int8)


def note_deviation(outcome: "Int8Outcome") -> None:
    """Warn where landmarks move further than the drift of published networks allows."""
    from pfld_edge.console import note

    if outcome.deviation > _LARGE_DEVIATION:
        costs = ", ".join(f"{cost.layer} {cost.deviation:.4f}" for cost in outcome.report.costs[:3])
        note(
            f"landmarks of held-back faces are {outcome.deviation:.4f} eye distances from fp32, more than "
            f"{_LARGE_DEVIATION}; the layers that move them most: {costs}; --max-deviation {_LARGE_DEVIATION} "
            "keeps in float as few as that needs"
        )


def opened_checkpoint(path: Path) -> "tuple[nn.Module, Contract]":
    """Read a checkpoint that tells its network."""
    from pfld_edge.console import note_assumed
    from pfld_edge_convert.model_file import checkpoint_contract
    from pfld_edge_runtime.errors import naming
    from pfld_edge_train.checkpoint import load_model

    model, loaded = load_model(path)
    with naming(path):
        contract = checkpoint_contract(loaded)
    note_assumed(path.name, not loaded.contract, contract)
    return model, contract


def opened_graph(
    path: Path,
    network: str | None,
    given: Path | None,
    **told: Any,  # noqa: ANN401 - `network_options`
) -> "tuple[onnx.ModelProto, Contract]":
    """Bring an ONNX file, or a checkpoint without contract, into our form."""
    from pfld_edge.console import note
    from pfld_edge_convert.contract_fields import known_contract
    from pfld_edge_convert.landmark_graph import Reading, landmark_graph
    from pfld_edge_convert.model_file import load_onnx
    from pfld_edge_runtime import Contract, ModelFileError

    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    reading = Reading(*(told.pop(name) for name in _READING))
    values = {_FIELDS.get(name, name): str(value) for name, value in told.items() if value is not None}
    if path.suffix.lower() == ".onnx":
        model = load_onnx(path)
        base = known_contract(path, model, given)
    elif network is None:
        model, base = exported_checkpoint(path, given, told)
    else:
        from pfld_edge_convert.export import export_checkpoint

        base = None if given is None else Contract.from_json(given.read_text(encoding="utf-8", errors="replace"))
        size = values.get("input_size", None if base is None else base.input_size)
        if size is None:
            raise click.UsageError("--network needs --input-size, the side of the images that it takes")
        model = export_checkpoint(path, network, int(size))
    found = landmark_graph(model, path.name, values, base, reading)
    for sentence in found.notes:
        note(sentence)
    return found.model, found.contract


def exported_checkpoint(
    path: Path, given: Path | None, told: Mapping[str, object]
) -> "tuple[onnx.ModelProto, Contract]":
    """Export a public project's checkpoint; its contract is the one that the options change."""
    from pfld_edge_convert.export import export_onnx
    from pfld_edge_convert.landmark_graph import unnamed_scheme
    from pfld_edge_convert.model_file import checkpoint_contract
    from pfld_edge_convert.reparameterize import reparameterize
    from pfld_edge_runtime import Contract
    from pfld_edge_runtime.errors import naming
    from pfld_edge_train.checkpoint import load_model

    network, loaded = load_model(path)
    if loaded.contract:
        names = [name.replace("_", "-") for name, value in {**told, "contract": given}.items() if value is not None]
        options = ", ".join(f"--{name}" for name in names) or "--output-..."
        raise click.UsageError(f"{path} carries a contract: {options} can't change it")
    with naming(path):
        if given is not None:
            base = Contract.from_json(given.read_text(encoding="utf-8", errors="replace"))
        else:
            base = checkpoint_contract(
                loaded, unnamed_scheme(loaded.model.num_landmarks) if told["landmarks"] else None
            )
    return export_onnx(reparameterize(network), base.input_size), base


def judged_faces(data: Path, images: Path | None, contract: "Contract", skip: "SkippedFiles") -> "LabelledCrops":
    """Read and cut the faces of --data; those that `evaluate` leaves out are left out."""
    import numpy as np

    from pfld_edge.console import note
    from pfld_edge_calib import FaceSetError, cut_faces, open_faces, true_landmarks
    from pfld_edge_calib.find_landmarks import comparable
    from pfld_edge_calib.photo import UnusableFaces, folder_hint
    from pfld_edge_convert.int8_stage import LabelledCrops

    unusable = UnusableFaces(skip)
    faces = list(comparable(open_faces(data, "test", images, skip=skip).load(skip), contract, skip))
    batches = list(cut_faces(faces, contract, unusable=unusable))
    if unusable.outside:
        note(f"{len(unusable.outside)} of {len(faces)} faces of {data} left out: they lie outside of their photographs")
    if not batches:
        hint = folder_hint(unusable.unreadable.values(), "--data-images")
        raise FaceSetError(f"{data}: none of its {len(faces)} faces can be measured{hint}")
    shown = unusable.others(faces)
    return LabelledCrops(
        np.concatenate([batch.crops for batch in batches]),
        np.concatenate([batch.windows.to_crop(true_landmarks(batch.faces, contract)) for batch in batches]),
        np.array(["largepose" in face.attributes for face in shown]),
        np.unique([str(face.image) for face in shown], return_inverse=True)[1],
    )
