"""An option's value that gives a free axis its size."""

import click

__all__ = ["AxisSize"]


class AxisSize(click.ParamType[tuple[str, int]]):
    """A name and a size, as ``height=480``."""

    name = "name=size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Read both."""
        if isinstance(value, tuple):
            return value
        name, _, size = str(value).rpartition("=")
        if not name or not size.isdecimal() or int(size) < 1:
            self.fail(f"{str(value)!r} is not a name and a size; write height=480", param, ctx)
        return name, int(size)
