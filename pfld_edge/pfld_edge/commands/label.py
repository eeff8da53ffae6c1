"""`pfld-edge label`: landmarks for photographs that have none, from networks that have learned them."""

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pfld_edge import options

if TYPE_CHECKING:
    from pfld_edge_calib.labelling.run import LabellingReport


@click.command("label")
@click.argument("photos", nargs=-1, type=options.PATH)
@options.output_option("The CSV of labels, for `pfld-edge train`.", options.result_file("output", ".csv"))
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    required=True,
    type=options.PATH,
    help="Checkpoint or ONNX file; may be repeated.",
)
@click.option("--flip", is_flag=True, help="Each teacher looks at the mirror image too.")
@click.option("--crops", type=click.IntRange(1, 16), default=1, show_default=True, help="Crops of each face.")
@click.option(
    "--passes", type=click.IntRange(1, 5), default=2, show_default=True, help="Each starts in the last one's box."
)
@options.detector_option("; several find more; bundled where left out", multiple=True)
@click.option("--least-score", type=click.FloatRange(0, 1), help="Of a detected face; the detector's own if left out.")
@click.option("--boxes", type=options.PATH, help="CSV that says where faces are: image,x0,y0,x1,y1, or any points.")
@click.option(
    "--images",
    type=options.PATH,
    help="Folder that names in lists, in --boxes and in OUTPUT are relative to; each file's own folder if left out.",
)
@click.option(
    "--least-agreement",
    type=click.FloatRange(0, 1),
    default=0.25,
    show_default=True,
    help="Leave out faces on which the teachers agree less: 1 is full agreement, 0 is none.",
)
@click.option("--least-size", type=click.FloatRange(1), default=26, show_default=True, help="Of a face, in pixels.")
@click.option("--workers", type=click.IntRange(1), help="Processes; one for each core if left out.")
@options.ray_option
@options.strict_option
def label_command(
    photos: tuple[Path, ...],
    output: Path,
    teachers: tuple[Path, ...],
    detectors: tuple[str, ...],
    least_score: float | None,
    boxes: Path | None,
    images: Path | None,
    workers: int | None,
    ray: str | None,
    strict: bool,
    **rules: Any,  # noqa: ANN401 - the fields of LabelSettings
) -> None:
    """Label the faces of PHOTOS: folders, text files that list photographs, photographs, .tar or .parquet shards.

    Several networks look at each face. Their median is the label; where they disagree, its landmarks get little weight.
    The bundled detector finds the faces, or --detector, or --boxes says where they are, or a shard does. With --boxes,
    PHOTOS may be left out. Interrupted or killed, the same command goes on where it stopped, and the CSV
    comes out the same.

    Photographs that can't be read are skipped and named; the exit status is then 2.
    """
    from pfld_edge.console import SkippedFiles, note, note_assumed, note_left_out, progress_bar
    from pfld_edge.labelling import label_plan, open_labeller
    from pfld_edge_calib.datasets.open_faces import is_sharded
    from pfld_edge_calib.labelling.labeller import LabelSettings
    from pfld_edge_calib.labelling.run import LABEL_UNIT, label_photos, run_identity, write_labels
    from pfld_edge_calib.parallel import ResultsFolder, usable_cores

    sharded = bool(photos) and any(map(is_sharded, photos))
    if detectors and boxes is not None and not sharded:
        raise click.UsageError("--detector and --boxes both say where faces are: leave one out")
    if not photos and boxes is None:
        raise click.UsageError("give PHOTOS: folders, text files that list photographs, or photographs")
    assumed = not (detectors or boxes or sharded)
    detectors = (options.BUNDLED,) if assumed else detectors
    settings = LabelSettings(**rules)
    make = partial(open_labeller, teachers, detectors, least_score, settings)
    # Here first, before any process starts: what is wrong with the files is said at once.
    labeller = make()
    for teacher in labeller.teachers:
        note_assumed(teacher.name, teacher.assumed, teacher.contract)
    if assumed:
        note("the bundled detector finds the faces; --detector takes others")
    together = 1 if ray is None else LABEL_UNIT
    for folder in [] if sharded else filter(Path.is_dir, photos):
        note_left_out(folder)
    skip = SkippedFiles(strict=strict)
    plan = label_plan(photos, boxes, images, output, together=together, skip=skip)
    finders = [*detectors, *([] if least_score is None else [str(least_score)])]
    identity = run_identity(plan.identity, teachers, finders, settings)
    count = min(workers or usable_cores(), len(plan.units))
    results = ResultsFolder(output.with_name(f"{output.name}.partial"), identity)
    if done := results.done(plan.units):
        note(f"{done} of {plan.count} photographs are done already ({results.path})")
    try:
        with progress_bar("photographs", plan.count) as advance:
            opened = make if count > 1 else lambda: labeller
            run = options.runner(workers, ray, len(plan.units))
            label_photos(plan.units, make if ray is not None else opened, results, run, advance, skip)
    except KeyboardInterrupt:
        note(f"{results.done(plan.units)} of {plan.count} photographs are kept; the same command goes on")
        raise
    report = write_labels(plan.units, results, output, labeller.scheme.num_landmarks, skip)
    shutil.rmtree(results.path)
    _tell(report, output)
    skip.check(report.photos)


def _tell(report: "LabellingReport", out: Path) -> None:
    """Say what became of the photographs and their faces."""
    from pfld_edge_calib.errors import LabellingError
    from pfld_edge_calib.labelling.labeller import DROP_REASONS

    dropped = report.dropped
    reasons = ", ".join(f"{dropped[key]} {reason}" for key, reason in DROP_REASONS.items() if dropped[key])
    read = report.photos - report.unreadable
    if not read:
        raise LabellingError(f"none of {report.photos} photographs can be read")
    if not report.labelled:
        found = f"{report.found} faces, none fit to label: {reasons}" if report.found else "no face"
        raise LabellingError(f"{read} photographs that can be read show {found}")
    click.echo(f"{report.labelled} faces of {read} photographs -> {out}")
    if reasons:
        click.echo(f"{sum(dropped.values())} faces left out: {reasons}")
