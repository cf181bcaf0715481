"""A hook of mkdocs: a flag such as --data-dir is not broken over two lines at its hyphens."""

from __future__ import annotations

import re

_INLINE_CODE = re.compile(r"<code>([^<]+)</code>")  # that of a block has tags in it, or attributes
_FLAG = re.compile(r"(?<!\S)--?\w[\w-]*")


def _keep_flags_whole(code: re.Match[str]) -> str:
    return f"<code>{_FLAG.sub(lambda flag: f'<span class=flag>{flag[0]}</span>', code[1])}</code>"


def on_page_content(html: str, **_: object) -> str:
    """Called by mkdocs with the HTML of each page."""
    return _INLINE_CODE.sub(_keep_flags_whole, html)
