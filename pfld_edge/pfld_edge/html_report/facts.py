"""What was measured, with what, where: for whoever wants to repeat it."""

import json
from html import escape

from pfld_edge.html_report.markup import details, table
from pfld_edge_calib.proof import ModelProof, Verification

__all__ = ["contract_details", "fact_table"]


def fact_table(found: Verification, command: str, machine: dict[str, str]) -> str:
    """Hashes of the files, the command, versions and the processor.

    Args:
        found: The verification.
        command: As it was typed.
        machine: Names and values.
    """
    files = table(
        "Files",
        ("network", "kind", "SHA-256"),
        [[escape(model.name), escape(model.kind), f"<code>{escape(model.sha256)}</code>"] for model in found.models],
    )
    settings = found.settings
    asked = {
        "command": command,
        "data": (settings.data or "the two bundled portraits") + (f", {settings.split}" if settings.data else ""),
        "faces": f"{len(found.faces)} of {int(found.photographs.max()) + 1} photographs",
        "intervals": f"95 %, bootstrap over photographs, {settings.resamples} resamples, seed {settings.seed}",
        **machine,
    }
    rows = [
        [escape(name), f"<code>{escape(value)}</code>" if name == "command" else escape(value)]
        for name, value in asked.items()
    ]
    return files + table("How it was measured", ("", ""), rows)


def contract_details(model: ModelProof) -> str:
    """The contract, folded away."""
    record = model.contract.to_dict()
    record.pop("fingerprint", None)
    record["landmarks"] = model.contract.landmarks.name
    text = escape(json.dumps(record, indent=1, sort_keys=True))
    assumed = " (assumed: the file carries none)" if model.assumed else ""
    return details(f"contract of {model.name}{assumed}", f"<pre>{text}</pre>")
