"""Receptive fields in a sentence."""

from collections.abc import Mapping

import onnx

from pfld_edge_convert.receptive_field.field import ReceptiveField

__all__ = ["field_facts"]


def field_facts(model: onnx.ModelProto, fields: Mapping[str, ReceptiveField]) -> tuple[str, ...]:
    """Say what the farthest-seeing map and the outputs see; nothing where no field is known."""
    maps = [
        (fields[name].height, node.name or name, fields[name])
        for node in model.graph.node
        for name in node.output
        if name in fields and fields[name].is_map
    ]
    ends = [fields[value.name] for value in model.graph.output if value.name in fields]
    if not ends:
        return ()
    words = []
    if maps:
        _, layer, field = max(maps, key=lambda found: found[0])
        step = f"{field.steps[0]:g}" if field.steps[0] == field.steps[1] else f"{field.steps[0]:g} x {field.steps[1]:g}"
        words.append(f"{field.describe()} px at {layer}, the map that sees farthest, a position every {step} px")
    if not all(field.exact for field in ends):
        words.append("what the outputs see isn't known exactly")
    elif all(field.whole for field in ends):
        words.append("the outputs see the whole picture")
    else:
        words.append(
            f"the outputs see {', '.join(dict.fromkeys(field.describe() for field in ends))} px of the picture"
        )
    return (f"receptive field: {'; '.join(words)}",)
