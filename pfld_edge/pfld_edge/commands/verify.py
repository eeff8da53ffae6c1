"""`pfld-edge verify`: whether converted files still find the checkpoint's landmarks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pfld_edge.json_target import JsonTarget
from pfld_edge.output_suffix import check_suffix
from pfld_edge.share import Share
from pfld_edge.workers import ray_option, resume_option, workers_option

if TYPE_CHECKING:
    from pfld_edge_calib import Face

__all__ = ["verify_command"]


@click.command("verify")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A WFLW folder, a CSV of points, or shards; where left out, the two bundled portraits (a smoke test).",
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of a CSV's images; its own where left out.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", help="Which list of a WFLW folder.")
@click.option("--max-drift", type=Share(), help="Largest NME increase over the checkpoint's, e.g. 0.5%.")
@click.option("--accept-undecided", is_flag=True, help="Exit with 0 where the faces are too few to tell.")
@click.option("--fused/--no-fused", default=True, show_default=True, help="Also run the checkpoint's fused torch form.")
@click.option("--worst", type=click.Path(path_type=Path), help="Folder for pictures of the faces that deviate most.")
@click.option("--json", "json_target", type=JsonTarget(), help="Write all figures: a .json file, or - for the output.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML, which CI servers show.")
@click.option("--report", type=click.Path(path_type=Path), help="Write an HTML page with everything in it.")
@click.option(
    "--robustness", is_flag=True, help="Also measure the NME under blur, noise, turned heads, shifted boxes..."
)
@click.option("--robustness-plot", type=click.Path(path_type=Path), help="PNG of these curves; implies --robustness.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads for ONNX files.")
@workers_option
@resume_option
@ray_option
def verify_command(
    checkpoint: Path,
    models: tuple[Path, ...],
    data: Path | None,
    images: Path | None,
    split: str,
    max_drift: float | None,
    accept_undecided: bool,
    fused: bool,
    worst: Path | None,
    json_target: str | None,
    junit: Path | None,
    report: Path | None,
    robustness: bool,
    robustness_plot: Path | None,
    threads: int,
    workers: int | None,
    resume: Path | None,
    ray: str | None,
) -> None:
    """Compare each MODEL (ONNX fp32 or INT8, end-to-end graph, checkpoint) with the CHECKPOINT it was made from.

    Prints the drift of the NME with its 95 % interval, deviations by subset and part of the face, and, where something
    is off, what likely caused it. With --max-drift a model passes if the whole interval lies within, fails if it lies
    beyond, and is undecided if these faces can't tell.

    Exits with status 1 where a model failed, or can't be told to have passed.
    """
    import time

    from pfld_edge.console import face_progress, note, note_assumed
    from pfld_edge.large_run import FacesOfRecord, LargeRun, LargeSet, verify_large
    from pfld_edge.output_file import write_atomically
    from pfld_edge.proof_output import print_verification, write_verification
    from pfld_edge.report_output import damaged, write_report
    from pfld_edge_calib import jittered, labelled_faces, portraits
    from pfld_edge_calib.proof import Settings, junit_xml, verify_models
    from pfld_edge_calib.sources import is_sharded
    from pfld_edge_convert.diagnosis import diagnosed
    from pfld_edge_convert.proof_models import fused_form, open_proof_model

    if report is not None:
        check_suffix(report, "report", ".html")
    started = time.monotonic()
    opened = [open_proof_model(path, threads) for path in (checkpoint, *models)]
    if fused and opened[0].kind == "torch":
        opened.insert(1, fused_form(checkpoint))
    run = LargeRun(workers, resume, ray)
    streamed = run.needed(data, split)
    if (robustness or robustness_plot is not None) and data is not None and is_sharded(data):
        raise click.UsageError(
            "--robustness looks at each photograph many times: give a WFLW folder or a CSV, not shards"
        )
    faces: Sequence[Face]
    if data is None:
        faces = jittered(portraits(opened[0].contract), 32, seed=1)
        if faces[0].landmarks is None:
            name = opened[0].contract.landmarks.name
            raise click.UsageError(f"give --data: nothing bundled has the landmarks of {name!r}")
        note("no --data: two portraits under 32 boxes each show that the files work, they do not measure accuracy")
    else:
        faces = [] if streamed else labelled_faces(data, split, images)
    for model in opened:
        note_assumed(model.name, model.assumed)
    settings = Settings("" if data is None else str(data), split, max_drift, accept_undecided)
    if streamed and data is not None:
        large = verify_large(opened, LargeSet(data, split, images), settings, run)
        found = click.get_current_context().with_resource(large)
        faces = FacesOfRecord(found)
    else:
        with face_progress("faces", len(faces)) as advance:
            found = verify_models(opened, faces, settings, advance=advance)
    found = diagnosed(found, opened, faces, lambda name: note(f"looking for what may be wrong with {name}"))
    curves = None
    if robustness or robustness_plot is not None:
        curves = damaged(opened, faces, robustness_plot, stderr=json_target == "-")
    write_verification(found, json_target, worst, curves)
    if report is not None:
        write_report(found, report, curves)
    if junit is not None:
        write_atomically(junit, junit_xml(found, time.monotonic() - started))
    print_verification(found, stderr=json_target == "-")
    if found.fell_short:
        raise click.exceptions.Exit(1)
