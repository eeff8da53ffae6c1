"""Whether a checkpoint belongs to the run that a configuration describes."""

from collections.abc import Iterator
from typing import Any

from pfld_edge_train.config import TrainConfig
from pfld_edge_train.errors import TrainConfigError

__all__ = ["difference"]

_HARMLESS = frozenset({"device", "compile", "checkpoint_steps", "checkpoint_minutes", "tensorboard", "trained_on"})
"""Keys that say where and how a run is done, or what is written beside it; not what it learns."""


def difference(saved: dict[str, Any], config: TrainConfig) -> str | None:
    """Say in what a saved configuration differs, apart from what doesn't matter to the weights.

    Args:
        saved: From a checkpoint, of an older version even: keys that it lacks have their defaults.
        config: Of the run that wants to go on.

    Returns:
        The first difference in words; None where there is none.
    """
    try:
        before = TrainConfig.from_dict(saved).to_dict()
    except TrainConfigError as error:
        return f"this version can't read its {error}"
    return next(_differences(before, config.to_dict()), None)


def _differences(before: dict[str, Any], now: dict[str, Any], table: str = "") -> Iterator[str]:
    for name, value in now.items():
        old = before[name]
        if name in _HARMLESS and not table:
            continue
        if isinstance(value, dict):
            yield from _differences(old, value, f"{name}.")
        elif name == "data":
            yield from _differences_of_data(old, value)
        elif old != value:
            yield f"{table}{name} was {old!r} and is {value!r} now"


def _differences_of_data(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> Iterator[str]:
    if len(before) != len(now):
        yield f"it had {len(before)} sources of faces and has {len(now)} now"
    for number, (old, new) in enumerate(zip(before, now, strict=False), start=1):
        yield from _differences(old, new, f"data {number}, ")
