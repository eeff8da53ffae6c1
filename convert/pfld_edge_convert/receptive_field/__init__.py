"""How far each layer of a network sees."""

from pfld_edge_convert.receptive_field.field import ReceptiveField, receptive_fields

__all__ = ["ReceptiveField", "receptive_fields"]
