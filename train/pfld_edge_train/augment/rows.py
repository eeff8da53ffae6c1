"""Records of arrays whose first axis counts faces."""

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["take_rows"]

Record = TypeVar("Record")


def take_rows(record: Record, rows: slice | NDArray[np.integer] | NDArray[np.bool_]) -> Record:
    """Choose faces from a dataclass of arrays, or of such dataclasses, tuples of them, or None.

    Args:
        record: Every array in it has the faces on its first axis.
        rows: What numpy indexes by.
    """
    return cast(Record, _take(record, rows))


def _take(value: Any, rows: Any) -> Any:  # noqa: ANN401 - arrays and records of them
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(_take(getattr(value, item.name), rows) for item in fields(value)))
    if isinstance(value, tuple):
        return tuple(_take(item, rows) for item in value)
    return None if value is None else value[rows]
