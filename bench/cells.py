"""A record's figures and words as tables have them; needs no torch."""

from __future__ import annotations

from typing import Any


def dtypes(r: dict[str, Any]) -> str:
    """A record's dtype, with that of the class means where it is not float32."""
    means = r["means_dtype"]
    return r["dtype"] if means == "float32" else f"{r['dtype']}, {means} means"


def way(r: dict[str, Any]) -> str:
    """A record's way, with the teacher where it is given as its norms."""
    return f"{r['way']}, norms" if r["kind"] == "norms" else r["way"]


def median_us_of(r: dict[str, Any], name: str) -> float | None:
    """Of another step, by its name; "roofline" is the case's own, "compile" the fastest mode."""
    step = {"roofline": r["roofline"], "compile": r["compile_mode"]}.get(name, name)
    return r["others"].get(step, {}).get("median_us")


def inverse(ratio: float | None) -> float | None:
    """How many times as long as ndfast another takes."""
    return None if ratio is None else 1 / ratio


def figure(value: float | None) -> str:
    """Three digits at least, and no exponent."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
