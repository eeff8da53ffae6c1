"""Prints verifications, and writes them where the user asked."""

import json
from pathlib import Path

import click

from pfld_edge.console import console
from pfld_edge.json_target import write_json
from pfld_edge.proof_tables import (
    accuracy_table,
    drift_table,
    error_table,
    evaluation_table,
    proof_lines,
    region_table,
    subset_table,
)
from pfld_edge.worst_faces import write_worst_faces
from pfld_edge_calib.proof import Verification, verification_record
from pfld_edge_calib.robustness import Robustness, robustness_record

__all__ = ["print_evaluation", "print_verification", "write_verification"]


def print_verification(found: Verification, *, stderr: bool = False) -> None:
    """Print the tables of `verify`, then what failed and why."""
    out = console(stderr=stderr)
    tables = (
        accuracy_table(found),
        subset_table(found),
        region_table(found),
        drift_table(found),
    )
    for table in tables:
        if table is not None:
            out.print(table)
    for line in proof_lines(found):
        click.echo(line, err=stderr)


def print_evaluation(found: Verification, *, stderr: bool = False) -> None:
    """Print the tables of `evaluate`."""
    for table in (evaluation_table(found), error_table(found)):
        if table is not None:
            console(stderr=stderr).print(table)


def write_verification(
    found: Verification, json_target: str | None, worst: Path | None, robustness: Robustness | None = None
) -> None:
    """Write what was asked for.

    Args:
        found: The verification.
        json_target: A file, or ``-``; nothing where None.
        worst: Folder for pictures; none where None.
        robustness: Goes into the JSON too.

    Raises:
        OSError: A file can't be written.
    """
    if worst is not None:
        written = write_worst_faces(found, worst)
        said = f"{len(written)} pictures -> {worst}" if written else "no face deviates: no pictures"
        click.echo(said, err=True)
    if json_target is not None:
        record = verification_record(found)
        if robustness is not None:
            record["robustness"] = robustness_record(robustness)
        write_json(json_target, json.dumps(record, indent=2))
