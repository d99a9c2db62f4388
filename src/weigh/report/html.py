"""Reports in a notebook: the text as it is, with a picture under it where there is one."""

from __future__ import annotations

from html import escape


def as_html(text: str, picture: str = "") -> str:
    """Preformatted text and an SVG."""
    pre = f'<pre style="line-height:1.25">{escape(text)}</pre>'
    return f"<div>{pre}{picture}</div>"
