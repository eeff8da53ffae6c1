"""`pfld-edge predict`: draws the landmarks of the faces in photographs, videos and cameras."""

from pathlib import Path

import click

from pfld_edge import options


@click.command("predict")
@click.argument("inputs", nargs=-1, type=options.PATH, metavar="PHOTO|VIDEO|FOLDER...")
@click.option("--camera", type=click.IntRange(0), help="Number of a camera instead of files; ends with Ctrl-C.")
@options.output_option(
    "Folder, the working folder where left out; or a .png or .jpg file for one photograph, an .mp4 file for one video "
    "or a camera.",
    options.RESULT,
    default=".",
)
@click.option("--model", type=options.PATH, help="Checkpoint or ONNX file; the bundled INT8 file where left out.")
@options.detector_option("; bundled where left out")
@click.option(
    "--box",
    "boxes",
    multiple=True,
    type=options.BOX,
    help="A face instead, tight around its landmarks; may be repeated; whole for a face from border to border.",
)
@click.option("--refine", type=click.IntRange(0), default=1, show_default=True, help="Further looks at found faces.")
@click.option("--max-faces", type=click.IntRange(1), help="Look at so many faces at most, the surest.")
@click.option("--confidence", is_flag=True, help="Say how far landmarks can be trusted; takes longer.")
@click.option(
    "--draw",
    type=options.DRAW_LIST,
    default="points,contours,ids,confidence",
    show_default=True,
    help="Any of points,contours,boxes,pose,ids,confidence; or none.",
)
@click.option("--smooth/--no-smooth", default=True, show_default=True, help="Of a video: steady the points.")
@click.option(
    "--every", type=click.IntRange(1), default=15, show_default=True, help="Of a video: frames to the next search."
)
@click.option("--frames", type=click.IntRange(1), help="Of a video or camera: stop after so many.")
@options.strict_option
@options.json_option("Also write the landmarks, one document or (.jsonl) a line a photograph or frame", ".jsonl")
@click.option("--csv", "csv_path", type=options.result_file("table", ".csv"), help="Also write a table, a row a face.")
@click.option("--threads", type=click.IntRange(0), default=1, show_default=True, help="0: onnxruntime's choice.")
def predict_command(
    inputs: tuple[Path, ...],
    camera: int | None,
    output: Path,
    model: Path | None,
    detector: str | None,
    boxes: tuple[options.Box, ...],
    refine: int,
    max_faces: int | None,
    confidence: bool,
    draw: frozenset[str],
    smooth: bool,
    every: int,
    frames: int | None,
    strict: bool,
    json_target: str | None,
    csv_path: Path | None,
    threads: int,
) -> None:
    """Draw the landmarks of the faces in photographs, folders of them, videos, or what a camera sees.

    The bundled detector finds all faces, or another --detector. --box says where the faces of a single photograph are,
    in its pixels; with --box whole each photograph is one face, from border to border. Photographs in which no face is
    found are named. Ctrl-C keeps what is done. Files that can't be read are skipped and named; the exit status is then
    2.
    """
    from functools import partial

    from pfld_edge.console import note, note_assumed
    from pfld_edge.prediction import FaceSearch, Prediction, sorted_inputs
    from pfld_edge_convert.landmark_models import open_landmark_model
    from pfld_edge_runtime import BUNDLED_MODEL, FaceAnalyzer, FaceLandmarker, FaceTracker, Smoothing, open_detector

    if (camera is None) == (not inputs):
        raise click.UsageError("give photographs, videos or folders, or else --camera")
    photos, videos = sorted_inputs(inputs, output)
    moving: list[Path | int] = [*videos, *([] if camera is None else [camera])]
    if boxes and (moving or (len(photos) != 1 and {*boxes} != {options.WHOLE})):
        raise click.UsageError("--box goes with a single PHOTO, --box whole with photographs")
    if boxes and detector:
        raise click.UsageError("--box and --detector both say where faces are: leave one out")
    if output.suffix.lower() in (".gif", ".bmp", ".webp", ".tif", ".tiff", ".avi", ".mov", ".mkv", ".webm"):
        raise click.UsageError(f"the output must be a folder, or end in .png, .jpg or .mp4, not {output.name}")
    if output.suffix.lower() == ".mp4" and (len(moving) != 1 or photos):
        raise click.UsageError(f"{output} is one video: give one video or camera, or a folder as -o")
    opened = open_landmark_model(model or BUNDLED_MODEL, threads)
    note_assumed(opened.name, opened.assumed, opened.contract)
    network = FaceLandmarker(opened)
    finder = None if boxes else open_detector(detector or options.BUNDLED, threads=threads)
    analyze = None if finder is None else FaceAnalyzer(finder, network, refine, max_faces)
    assumed = "the bundled detector finds the faces; --detector takes others, --box gives them"
    remark = "" if boxes or detector else assumed
    search = FaceSearch(network, boxes, analyze, confidence, remark)
    targets = [str(target) for target in (json_target, csv_path) if target is not None]
    with Prediction(output, draw, search, targets, strict=strict) as prediction:
        prediction.photographs(photos)
        for source in moving:
            if finder is not None:
                smoothing = Smoothing() if smooth else None
                tracker = partial(FaceTracker, finder, network, every=every, max_faces=max_faces, smoothing=smoothing)
                prediction.video(source, tracker, frames, alone=len(moving) == 1 and not photos)
    if confidence and model is not None:
        note("confidences follow the curve in the model's contract, which holds for the network that it was fitted to")
    prediction.check_skipped()
