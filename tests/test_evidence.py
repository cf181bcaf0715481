"""What the README says of the trainings is what they found: docs/evidence/ has it, seed by seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t as student_t

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETS = {"digits": "digits", "mnist1d": "MNIST-1D"}
PAIRS = ("KD", "DKD", "DIST", "ReviewKD")
FOUND: dict[str, dict[str, Any]] = {
    name: json.loads((ROOT / "docs" / "evidence" / f"{name}.json").read_text(encoding="utf-8"))
    for name in SETS
}


def interval(differences: list[float]) -> str:
    """Mean and 95 % interval of Student's t, in points, as the README writes them."""
    points, count = [100 * difference for difference in differences], len(differences)
    mean = sum(points) / count
    variance = sum((point - mean) ** 2 for point in points) / (count - 1)
    half = student_t.ppf(0.975, count - 1) * (variance / count) ** 0.5
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})".replace("-", "−")


@pytest.mark.parametrize("pair", PAIRS)
def test_the_table_of_pairs(pair: str) -> None:
    cells = []
    for found in FOUND.values():
        (differences,) = (
            one["differences"] for one in found["pairs"] if one["base"] == pair.lower()
        )
        assert len(differences) == found["config"]["seeds"] == 10
        cells.append(interval(differences))
    assert f"| {pair}++ − {pair} | {' | '.join(cells)} |\n" in README


def test_the_head_of_the_table_and_its_command() -> None:
    assert f"\n| | {' | '.join(SETS.values())} |\n" in README
    for name, found in FOUND.items():
        assert found["config"]["data"] == found["data"]["name"] == name
        methods = " ".join(found["config"]["methods"])
        assert f"ndfast compare --data NAME --seeds 10 --methods {methods}`" in README


def test_fused_and_reference_agree_as_said() -> None:
    trained = [one for found in FOUND.values() for one in found["trajectories"].values()]
    assert len(trained) == len(SETS) * len(PAIRS)
    assert all(one["backend"] == "native" for one in trained)
    digits, mnist1d = (
        {one["steps"] for one in found["trajectories"].values()} for found in FOUND.values()
    )
    loss, parameters = (
        f"{max(one[name] for one in trained):.1e}".replace("e-0", "e-")
        for name in ("max_loss_difference", "parameter_difference")
    )
    assert (
        f"over {digits.pop()} and {mnist1d.pop()} steps, the losses agree to {loss} and the final "
        f"parameters to {parameters} or better, relatively, and the test accuracies are equal."
    ) in " ".join(README.split())
    assert not digits | mnist1d
    assert {one["accuracy_difference"] for one in trained} == {0.0}
