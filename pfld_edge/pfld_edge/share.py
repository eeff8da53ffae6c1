"""An option's value that is a share of something."""

import click

__all__ = ["Share"]


class Share(click.ParamType[float]):
    """A share, written as ``0.5%`` or ``0.005``."""

    name = "percent"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the share as a fraction."""
        text = str(value).strip()
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            self.fail(f"{text!r} is not a share; write 0.5% or 0.005", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"{text!r} is not between 0% and 100%", param, ctx)
        return share
