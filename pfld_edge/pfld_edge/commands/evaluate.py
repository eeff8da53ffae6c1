"""`pfld-edge evaluate`: how accurate a model is, by the published protocol."""

from pathlib import Path

import click

from pfld_edge.options import (
    PATH,
    data_option,
    json_option,
    ray_option,
    resume_option,
    strict_option,
    threads_option,
    workers_option,
)


@click.command("evaluate")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=PATH)
@data_option
@click.option("--images", type=PATH, help="Folder of a CSV's images; its own where left out.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", help="Which list of a WFLW folder.")
@click.option(
    "--detector",
    help="Let a detector find the faces: yunet, scrfd, ultraface (`pfld-edge detector`) or an ONNX file; "
    "those that it misses count as failures.",
)
@click.option(
    "--refine",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Further looks at faces that --detector found.",
)
@threads_option
@click.option("--worst", type=PATH, help="Folder for pictures of the faces with the largest errors.")
@json_option("Write all figures")
@workers_option
@resume_option
@ray_option
@strict_option
def evaluate_command(
    models: tuple[Path, ...],
    data: tuple[Path, ...],
    images: Path | None,
    split: str,
    detector: str | None,
    refine: int,
    threads: int,
    worst: Path | None,
    json_target: str | None,
    workers: int | None,
    resume: Path | None,
    ray: str | None,
    strict: bool,
) -> None:
    """Print NME, FR and AUC of each MODEL (checkpoint, ONNX file, end-to-end graph), for all faces and by subset.

    Faces are cut by the tight box of their true landmarks (the published protocol), or with --detector by the box of
    the detection that overlaps it most. Photographs that can't be read are skipped and named; the exit status is then
    2. Faces wholly outside of their photographs are left out and named.
    """
    from pfld_edge.console import SkippedFiles, note_assumed, progress_bar
    from pfld_edge.evaluation_run import LargeRun, verify_large, write_results
    from pfld_edge.evaluation_tables import print_evaluation
    from pfld_edge_calib import open_faces, true_landmarks
    from pfld_edge_calib.evaluation import VerificationSettings, as_detected_by, verify_models
    from pfld_edge_calib.photo import UnusableFaces
    from pfld_edge_convert.landmark_models import open_landmark_model
    from pfld_edge_runtime import open_detector

    if not data:
        raise click.UsageError("Missing option '--data'.")
    finder = None if detector is None else open_detector(detector)
    run = LargeRun(workers, resume, ray)
    streamed = run.needed(data, split)
    if streamed and detector is not None:
        raise click.UsageError("--detector can't be used with shards, large sets, --workers, --resume and --ray")
    faces = [] if streamed else open_faces(data, split, images).load()
    opened = [open_landmark_model(path, threads) for path in models]
    for model in opened:
        note_assumed(model.name, model.assumed)
        if not streamed:
            true_landmarks(faces, model.contract)
    skip = SkippedFiles(strict=strict)
    unusable = UnusableFaces(skip)
    if finder is not None:
        with progress_bar("detector", len(faces)) as advance:
            faces = as_detected_by(finder, faces, opened[0].contract, advance, unusable)
    settings = VerificationSettings(", ".join(map(str, data)), split, detector=detector or "")
    if streamed:
        large = verify_large(opened, data, images, settings, run, compare=False, skip=skip)
        found = click.get_current_context().with_resource(large)
    else:
        with progress_bar("faces", len(faces)) as advance:
            found = verify_models(
                opened,
                faces,
                settings,
                compare=False,
                refine=0 if finder is None else refine,
                advance=advance,
                unusable=unusable,
            )
    write_results(found, json_target, worst)
    if json_target != "-":
        print_evaluation(found)
    skip.check()
