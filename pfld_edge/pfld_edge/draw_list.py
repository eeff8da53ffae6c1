"""The words of `--draw`."""

import click

__all__ = ["DrawList"]

_KNOWN = ("points", "contours", "boxes", "pose", "ids", "confidence")


class DrawList(click.ParamType[frozenset[str]]):
    """Parts of a drawing as one word, `points,contours`; `none` for nothing."""

    name = "PARTS"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[str]:
        """Read the parts."""
        if isinstance(value, frozenset):
            return value
        parts = frozenset(part.strip() for part in str(value).split(",")) - {"none", ""}
        unknown = sorted(parts - {*_KNOWN})
        if unknown:
            self.fail(f"{unknown[0]!r} can't be drawn; known: {', '.join(_KNOWN)}, none", param, ctx)
        return parts
