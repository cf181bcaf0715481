"""The methods: what a student learns from besides the labels."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """What a student learns from besides the labels.

    Args:
        distillation: "kd", "dkd", "dist", "reviewkd", or None.
        nd: whether the ND loss is added.
    """

    distillation: str | None
    nd: bool


METHODS = {
    "ce": Method(None, nd=False),
    "kd": Method("kd", nd=False),
    "kd++": Method("kd", nd=True),
    "dkd": Method("dkd", nd=False),
    "dkd++": Method("dkd", nd=True),
    "dist": Method("dist", nd=False),
    "dist++": Method("dist", nd=True),
    "reviewkd": Method("reviewkd", nd=False),
    "reviewkd++": Method("reviewkd", nd=True),
}
