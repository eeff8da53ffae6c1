"""An option's value that is several whole numbers."""

import click

__all__ = ["NumberList"]


class NumberList(click.ParamType[tuple[int, ...]]):
    """Whole numbers of at least 1, as ``1,2,8``; doubles count once."""

    name = "n,n"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Read the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{str(value)!r} is not a list of whole numbers; write 1 or 1,2", param, ctx)
        if min(numbers) < 1:
            self.fail(f"{str(value)!r}: every number must be at least 1", param, ctx)
        return tuple(dict.fromkeys(numbers))
