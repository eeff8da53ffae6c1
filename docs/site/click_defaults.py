"""Leaves the default of an option empty where it has none; mkdocs-click prints click's own marker there."""


def on_page_content(html: str, **_: object) -> str:
    """Drop the marker."""
    return html.replace("<code>Sentinel.UNSET</code>", "")
