"""A hook of mkdocs: formulas become MathML when the site is built, so no page needs a script."""

from __future__ import annotations

import re
from html import unescape

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of $…$ (a span) and of $$…$$ (a div).
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</\1>', flags=re.DOTALL
)
# A function's name between two other names: TeX sets it apart, browsers do not.
_AFTER_A_NAME = re.compile(r"(</m(?:i|sub|frac)>)(<mi>(?:sin|cos)</mi>)")
_BEFORE_A_NAME = re.compile(r"(<mi>(?:sin|cos)</mi>)(<mi>)")
_THIN_SPACE = r'\1<mspace width="0.167em" />\2'


def _to_mathml(formula: re.Match[str]) -> str:
    display = "block" if formula[1] == "div" else "inline"
    mathml = convert(unescape(formula["latex"]).strip(), display=display)
    mathml = mathml.replace("<mo>max</mo>", "<mi>max</mi>")  # an operator's space is too wide
    mathml = _BEFORE_A_NAME.sub(_THIN_SPACE, _AFTER_A_NAME.sub(_THIN_SPACE, mathml))
    # The bars of a norm would grow to the height of the whole formula.
    return mathml.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')


def on_page_content(html: str, **_: object) -> str:
    """Called by mkdocs with the HTML of each page."""
    return _FORMULA.sub(_to_mathml, html)
