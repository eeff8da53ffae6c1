"""How far each layer of a network sees."""

from pfld_edge_convert.receptive_field.facts import field_facts
from pfld_edge_convert.receptive_field.field import ReceptiveField, receptive_fields

__all__ = ["ReceptiveField", "field_facts", "receptive_fields"]
