"""What the checks of the ND loss come to: of a run's steps, of a method's runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# What is compared. Class means that are trained are compared by their gradient.
QUANTITIES = {
    "loss": "the loss",
    "gradient": "the gradient of the features",
    "class_means": "a class mean, or its gradient,",
}


def summarise_checks(checks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What the checks of a run's steps, or those of several runs, come to.

    Args:
        checks: what `LossCheck.answer` of `ndfast.train.engine.loss_check` gave, with "step"; or
            such summaries, with "seed".

    Returns:
        None where nothing was checked. Else "steps", how many were; "differences" and
        "tolerances", by `QUANTITIES`, where they were worst by their quotient; "agrees"; and
        "refused": None, or of the first step that does not agree "step", "quantity", "difference",
        "tolerance", and of several runs "seed". What is not finite is None.
    """
    if not checks:
        return None
    worst = {
        name: max(
            checks, key=lambda check: _share(check["differences"][name], check["tolerances"][name])
        )
        for name in QUANTITIES
    }
    return {
        "steps": sum(check.get("steps", 1) for check in checks),
        **{
            kind: {name: check[kind][name] for name, check in worst.items()}
            for kind in ("differences", "tolerances")
        },
        "agrees": all(check["agrees"] for check in checks),
        "refused": next((_refusal(check) for check in checks if not check["agrees"]), None),
    }


def _share(difference: float | None, tolerance: float | None) -> float:
    """Of the tolerance that is used up; None is a number that is not finite."""
    if tolerance is None:
        return 0.0
    return math.inf if difference is None else difference / tolerance


def _refusal(check: dict[str, Any]) -> dict[str, Any]:
    if "refused" in check:
        return check["refused"] | {"seed": check["seed"]}
    shares = {
        name: _share(check["differences"][name], check["tolerances"][name]) for name in QUANTITIES
    }
    name = max(shares, key=shares.__getitem__)
    found = {"difference": check["differences"][name], "tolerance": check["tolerances"][name]}
    return {"step": check["step"], "quantity": name, **found}


def in_words(method: str, refused: dict[str, Any]) -> str:
    """A sentence on a step that does not agree."""
    seed = f" with seed {refused['seed']}" if "seed" in refused else ""
    off = "what is not finite" if refused["difference"] is None else f"{refused['difference']:.1e}"
    return (
        f"the ND loss and the reference disagree: of {method}{seed}, at step "
        f"{refused['step']}, {QUANTITIES[refused['quantity']]} is off by {off}; expected at most "
        f"{refused['tolerance']:.1e}"
    )
