"""A hook of mkdocs: formulas become MathML when the site is built, so no page needs a script."""

from __future__ import annotations

import re
from html import unescape

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of $…$ (a span) and of $$…$$ (a div).
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</\1>', flags=re.DOTALL
)


def _to_mathml(formula: re.Match[str]) -> str:
    display = "block" if formula[1] == "div" else "inline"
    mathml = convert(unescape(formula["latex"]).strip(), display=display)
    # The bars of a norm would grow to the height of the whole formula.
    return mathml.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')


def on_page_content(html: str, **_: object) -> str:
    """Called by mkdocs with the HTML of each page."""
    return _FORMULA.sub(_to_mathml, html)
