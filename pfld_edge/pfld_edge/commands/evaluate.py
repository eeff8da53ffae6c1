"""`pfld-edge evaluate`: how accurate a model is, by the published protocol."""

from pathlib import Path

import click

from pfld_edge.json_target import JsonTarget
from pfld_edge.workers import ray_option, resume_option, workers_option

__all__ = ["evaluate_command"]


@click.command("evaluate")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="A WFLW folder, a CSV of points, or shards."
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of a CSV's images; its own where left out.")
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
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads for ONNX files.")
@click.option(
    "--worst", type=click.Path(path_type=Path), help="Folder for pictures of the faces with the largest errors."
)
@click.option(
    "--json",
    "json_target",
    type=JsonTarget(),
    is_flag=False,
    flag_value="-",
    help="Write all figures: a .json file, or - (or nothing) for the output.",
)
@workers_option
@resume_option
@ray_option
def evaluate_command(
    models: tuple[Path, ...],
    data: Path,
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
) -> None:
    """Print NME, FR and AUC of each MODEL (checkpoint, ONNX file, end-to-end graph), for all faces and by subset.

    Faces are cut by the tight box of their true landmarks (the published protocol), or with --detector by the box of
    the detection that overlaps it most.
    """
    from pfld_edge.console import face_progress, note_assumed
    from pfld_edge.large_run import LargeRun, LargeSet, verify_large
    from pfld_edge.proof_output import print_evaluation, write_verification
    from pfld_edge_calib import labelled_faces, true_landmarks
    from pfld_edge_calib.proof import Settings, as_detected_by, verify_models
    from pfld_edge_convert.proof_models import open_proof_model
    from pfld_edge_runtime import open_detector

    finder = None if detector is None else open_detector(detector)
    run = LargeRun(workers, resume, ray)
    streamed = run.needed(data, split)
    if streamed and detector is not None:
        raise click.UsageError("--detector can't be used with shards, large sets, --workers, --resume and --ray")
    faces = [] if streamed else labelled_faces(data, split, images)
    opened = [open_proof_model(path, threads) for path in models]
    for model in opened:
        note_assumed(model.name, model.assumed)
        if not streamed:
            true_landmarks(faces, model.contract)
    cut_by = None
    if finder is not None:
        with face_progress("detector", len(faces)) as advance:
            cut_by = as_detected_by(finder, faces, opened[0].contract, advance)
    settings = Settings(str(data), split, detector=detector or "")
    if streamed:
        large = verify_large(opened, LargeSet(data, split, images), settings, run, compare=False)
        found = click.get_current_context().with_resource(large)
    else:
        with face_progress("faces", len(faces)) as advance:
            found = verify_models(
                opened,
                faces,
                settings,
                compare=False,
                cut_by=cut_by,
                refine=0 if cut_by is None else refine,
                advance=advance,
            )
    write_verification(found, json_target, worst)
    if json_target != "-":
        print_evaluation(found)
