"""Networks that find the reference's own landmarks have no charts: a sentence says so."""

from html import escape

from pfld_edge_calib.proof import ModelProof, Verification

__all__ = ["parted", "same_sentence"]

_SAME = 1e-4
"""Mean deviation, in eye distances, below which landmarks are the reference's own."""


def parted(found: Verification) -> tuple[list[ModelProof], list[ModelProof]]:
    """Part the networks that are compared into those that find the reference's landmarks, and the others."""
    compared = [model for model in found.models if model.deviation is not None]
    same = [model for model in compared if model.deviation is not None and model.deviation.mean < _SAME]
    return same, [model for model in compared if all(model is not other for other in same)]


def same_sentence(found: Verification, same: list[ModelProof]) -> str:
    """Name those that find the same landmarks; nothing where there are none."""
    if not same:
        return ""
    names = ", ".join(escape(model.name) for model in same)
    verb = "find" if len(same) > 1 else "finds"
    reference = escape(found.models[0].name)
    return f"<p>{names}: {verb} the landmarks of {reference}, to a ten-thousandth of the eye distance.</p>"
