"""What the pages say of the trainings is what they found: docs/evidence/ has it, seed by seed."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="needs the extra [train]")

from ndfast.train.compare.comparison import pair_differences

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETS = {"digits": "digits", "mnist1d": "MNIST-1D"}
PAIRS = ("KD", "DKD", "DIST", "ReviewKD")
FOUND: dict[str, dict[str, Any]] = {
    name: json.loads((ROOT / "docs" / "evidence" / f"{name}.json").read_text(encoding="utf-8"))
    for name in SETS
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_table_of_pairs(name: str) -> None:
    cells = []
    for found in FOUND.values():
        assert all(check["agrees"] for check in found["loss_checks"].values()), "the page says so"
        (kept,) = (pair for pair in found["pairs"] if pair["base"] == name.lower())
        runs = {method: found["runs"][method] for method in (kept["base"], kept["plus"])}
        for of_seeds in runs.values():
            assert [run["config"]["seed"] for run in of_seeds] == [*range(10)]
        (pair,) = pair_differences(runs)
        for key in ("differences", "mean", "interval", "p_value"):
            assert kept[key] == pytest.approx(pair[key], rel=1e-9), key
        mean, low, high = (f"{100 * end:+.2f}" for end in (pair["mean"], *pair["interval"]))
        cells.append(f"{mean} ({low} to {high})".replace("-", "−"))
    assert f"| {name}++ − {name} | {' | '.join(cells)} |\n" in PAGE


CIFAR100 = json.loads((ROOT / "docs" / "evidence" / "cifar100.json").read_text(encoding="utf-8"))


def test_the_table_of_cifar100() -> None:
    """In the README and on the page: means over the seeds, and the pairs' interval."""
    rows = []
    for method in ("kd", "kd++"):
        tests = [run["test"] for run in CIFAR100["runs"][method]]
        assert [run["config"]["seed"] for run in CIFAR100["runs"][method]] == [*range(len(tests))]
        accuracies = [100 * test["accuracy"] for test in tests]
        ratio, cosine = (mean(test[name] for test in tests) for name in ("norm_ratio", "cosine"))
        spread = f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f}"
        rows.append(f"| {method.upper()} | {spread} | {ratio:.2f} | {cosine:.3f} |")
    (pair,) = pair_differences(CIFAR100["runs"])
    for key in ("differences", "mean", "interval", "p_value"):
        assert pair[key] == pytest.approx(CIFAR100["pairs"][0][key], rel=1e-9), key
    ends = (f"{100 * end:+.2f}".replace("-", "−") for end in (pair["mean"], *pair["interval"]))
    rows.append("| KD++ − KD | {} ({} to {}) | | |".format(*ends))
    for page in (PAGE, README):
        assert "\n".join(rows) in page
