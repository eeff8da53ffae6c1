"""Reads a table of a configuration into its dataclass; what doesn't fit is named."""

from dataclasses import fields
from typing import Any, TypeVar

from pfld_edge_train.errors import TrainConfigError

__all__ = ["checked_table", "read_table"]

Table = TypeVar("Table")

_PLAIN: dict[object, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def checked_table(table: type, record: object, where: str) -> dict[str, Any]:
    """Check that a record has only the dataclass's keys, with values of their types.

    Args:
        table: A dataclass; only the types of plain fields are checked.
        record: As TOML gives it.
        where: Where it stands, for the message.

    Raises:
        TrainConfigError: A key is unknown or a value has the wrong type.
    """
    if not isinstance(record, dict):
        raise TrainConfigError(f"{where}: expected a table, found {record!r}")
    types = {item.name: item.type for item in fields(table)}
    for name, value in record.items():
        if name not in types:
            raise TrainConfigError(f"{where}: unknown key {name!r}; known: {', '.join(types)}")
        expected = types[name]
        # In Python, true is a whole number; in a configuration it is a mistake.
        whole = expected is float and type(value) is int
        if expected in _PLAIN and type(value) is not expected and not whole:
            raise TrainConfigError(f"{where}: {name} must be {_PLAIN[expected]}, found {value!r}")
    return record


def read_table(table: type[Table], record: object, where: str) -> Table:
    """Make a dataclass from a record.

    Raises:
        TrainConfigError: A key is unknown or missing, or a value is of the wrong type or out of range.
    """
    values = checked_table(table, record, where)
    try:
        return table(**values)
    except TrainConfigError as error:
        raise error if str(error).startswith(where) else TrainConfigError(f"{where}: {error}") from error
    except TypeError as error:
        lacking = [item.name for item in fields(table) if item.name not in values]  # type: ignore[arg-type]
        raise TrainConfigError(f"{where}: it lacks {lacking[0] if lacking else error}") from error
