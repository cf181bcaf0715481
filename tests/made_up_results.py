"""Results of runs, comparisons and detectors that never were, of random figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

METRICS = ("accuracy", "cross_entropy", "norm", "norm_ratio", "cosine")
LOSSES = ("ce", "distillation", "nd")
PARTS = ("data", "teacher", "nd", "forward", "backward", "optimizer")  # as the stopwatch has them


def uniform(low: float, high: float) -> float:
    """Of PyTorch's generator, which the fixture `seed` seeds."""
    return torch.rand((), dtype=torch.float64).item() * (high - low) + low


def metrics() -> dict[str, float]:
    return {name: uniform(0.2, 0.9) for name in METRICS}


def checked() -> dict[str, Any]:
    """Of the ND loss beside the reference."""
    return {
        "steps": 1240,
        "differences": {"loss": 1.5e-8, "gradient": 2.5e-7, "class_means": 0.0},
        "tolerances": {"loss": 1e-5, "gradient": 1e-5, "class_means": 1e-5},
        "agrees": True,
        "refused": None,
    }


def run_results(**changed: Any) -> dict[str, Any]:
    """Of a run of four epochs of ten steps."""
    epochs = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "train": {name: uniform(1, 3) for name in ("loss", "accuracy", *LOSSES)},
            "test": metrics(),
            "ema": metrics(),
        }
        for epoch in range(1, 5)
    ]
    parts = {name: uniform(0.1, 1) for name in PARTS}
    teacher = {name: value for name, value in metrics().items() if name != "norm_ratio"}
    results = {
        "config": {"method": "kd++", "seed": 3, "milestones": (1, 2), "resume": None},
        "environment": {"torch": "2.13.0", "device": "cpu", "gpus": [], "backends": {"cuda": "no"}},
        "backend": "native",
        "loss_check": checked(),
        "data": {"name": "digits", "train": 1438, "test": 359, "num_classes": 10},
        "teacher": {"name": "resnet56", "parameters": 861_620, "dim": 64} | teacher,
        "student": {"name": "resnet20", "parameters": 278_324, "dim": 64},
        "epochs": epochs,
        "test": epochs[-1]["test"],
        "ema": epochs[-1]["ema"],
        "steps": 40,
        "skipped": 2,
        "parts_ms": parts | {"forward": parts["nd"] + uniform(0.1, 1)},
        "images_per_s": uniform(1000, 9000),
        "sha256": "abcdef" * 10 + "abcd",
    }
    return results | changed


def run_records(steps: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "event": "step",
            "step": step,
            "loss": uniform(1, 3),
            "losses": {name: uniform(1, 3) for name in LOSSES},
        }
        for step in range(1, steps + 1)
    ]


def comparison_results(seeds: int = 3) -> dict[str, Any]:
    methods = ("ce", "kd", "kd++")
    runs = {method: [run_results() for _ in range(seeds)] for method in methods}
    kd, plus = (
        np.array([run["test"]["accuracy"] for run in runs[name]]) for name in ("kd", "kd++")
    )
    pair = {
        "base": "kd",
        "plus": "kd++",
        "metric": "accuracy",
        "differences": (plus - kd).tolist(),
        "mean": float((plus - kd).mean()),
        "interval": sorted((uniform(-0.2, 0.2), uniform(-0.2, 0.2))) if seeds > 1 else None,
        "p_value": uniform(0, 1) if seeds > 1 else None,
    }
    first = run_results()
    return {
        "config": first["config"] | {"methods": list(methods), "seeds": seeds},
        **{name: first[name] for name in ("environment", "teacher", "student", "data")},
        "runs": runs,
        "pairs": [pair],
        "loss_checks": {"kd++": {"backend": "native"} | checked()},
        "step_ms": {
            "ce": {"no ND": uniform(1, 2)},
            "kd": {"no ND": uniform(2, 3)},
            "kd++": {"native": uniform(2, 3), "reference": uniform(3, 4)},
        },
    }


def detection_results() -> dict[str, Any]:
    """Of a detector's students by three methods, one of which skipped steps."""
    reached = ("map", "map50", "norm", "cosine")
    found = [{name: uniform(0.2, 0.9) for name in reached} for _ in range(4)]
    first = run_results()
    return {
        "config": {"model": "tiny", "teacher": "small", "seed": 3, "methods": ("ce", "kd", "kd++")},
        "environment": first["environment"],
        "data": {"name": "coco 0123456789ab", "train": 1200, "test": 400},
        "teacher": found[0],
        "students": dict(zip(("ce", "kd", "kd++"), found[1:], strict=True)),
        "skipped": {"teacher": 0, "ce": 0, "kd": 1234, "kd++": 0},
    }


def detection_logs() -> dict[str, list[dict[str, Any]]]:
    """Of its trainings, each of two epochs of ten steps."""
    logs = {}
    for name in ("teacher", "ce", "kd", "kd++"):
        own = {"ce": (), "kd": ("kd",), "kd++": ("kd", "nd")}.get(name, ())
        losses = ("objectness", "proposals", "classification", "regression", *own)
        logs[name] = [
            {
                "event": "step",
                "step": step,
                "loss": uniform(1, 3),
                "losses": {part: uniform(1, 3) for part in losses},
            }
            for step in range(1, 21)
        ]
        logs[name] += [
            {
                "event": "epoch",
                "step": 10 * epoch,
                "train": {part: uniform(1, 3) for part in ("loss", *losses)},
                "parts_ms": run_results()["parts_ms"],
                "images_per_s": uniform(10, 90),
            }
            for epoch in (1, 2)
        ]
    return logs
