"""Puts the report together."""

from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

from pfld_edge.html_report.error_curves import error_curves
from pfld_edge.html_report.facts import contract_details, fact_table
from pfld_edge.html_report.forest import drift_charts
from pfld_edge.html_report.heat_face import heat_faces, region_rows
from pfld_edge.html_report.layers import layer_sections
from pfld_edge.html_report.markup import number, section, table
from pfld_edge.html_report.robustness_charts import robustness_charts
from pfld_edge.html_report.summary import banner, model_table, suspicion_list
from pfld_edge.html_report.worst_overlays import last_compared, worst_overlays
from pfld_edge_calib.proof import Verification
from pfld_edge_calib.robustness import Robustness
from pfld_edge_convert.quantization.report import QuantizationReport

__all__ = ["ReportContext", "report_page"]


@dataclass(frozen=True, slots=True)
class ReportContext:
    """What a report says beside the verification.

    Attributes:
        title: Of the page.
        command: As it was typed.
        machine: Versions, processor, date: names and values.
        quantization: Reports of INT8 files, by file name.
        robustness: Curves, where they were measured.
    """

    title: str = "Verification"
    command: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    quantization: dict[str, QuantizationReport] = field(default_factory=dict)
    robustness: Robustness | None = None


def report_page(found: Verification, context: ReportContext) -> str:
    """Write the page: one HTML text that loads nothing.

    Args:
        found: The verification.
        context: What else is to be said.
    """
    style = (files("pfld_edge.html_report") / "style.css").read_text(encoding="utf-8")
    shipped = last_compared(found).name
    reference = found.models[0].name
    body = "".join(
        [
            f"<header><h1>{escape(context.title)}</h1>{banner(found)}</header><main>",
            section("Accuracy", model_table(found) + suspicion_list(found)),
            section("Error curves", error_curves(found), "The further up and left, the better."),
            section(
                "Drift by subset",
                drift_charts(found),
                f"Change of the NME against {reference}; bars are 95 % intervals, numbers in brackets the faces. A bar "
                "across zero: these faces show no difference. The shaded part is within the budget.",
            ),
            section("By subset", _subset_table(found)),
            section(
                "Where on the face",
                heat_faces(found) + region_rows(found),
                f"Mean distance of each landmark from {reference}'s, in eye distances.",
            ),
            section(
                "Under damage",
                robustness_charts(context.robustness) if context.robustness else "",
                _damage_note(context),
            ),
            section(
                f"The faces that deviate most: {shipped}",
                worst_overlays(found),
                "The truth, the reference, and the network that is judged.",
            ),
            layer_sections(context.quantization),
            section("To repeat it", fact_table(found, context.command, context.machine)),
            section("Contracts", "".join(contract_details(model) for model in found.models)),
            "</main>",
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        '<meta name="color-scheme" content="light dark"/><link rel="icon" href="data:,"/>'
        f"<title>{escape(context.title)}</title><style>{style}</style></head><body>{body}</body></html>\n"
    )


def _damage_note(context: ReportContext) -> str:
    if context.robustness is None:
        return ""
    return (
        f"NME of {context.robustness.faces} faces, each brought to one size and damaged in the same way for every "
        "network; one scale for all charts."
    )


def _subset_table(found: Verification) -> str:
    names = [name for name in found.models[0].accuracy if name != "all"]
    rows = [
        [escape(name), str(found.models[0].accuracy[name].faces)]
        + [number(model.accuracy[name].nme, 4) for model in found.models]
        for name in ("all", *names)
    ]
    head = ("subset", "faces", *(model.name for model in found.models))
    return table("NME by subset", head, rows) if names else ""
