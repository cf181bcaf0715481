"""Whether the fused loss and the reference give the same training, and what a rounding does to it.

Two trainings that differ by a rounding end far apart where networks are deep and rates are high. So
further ones say how far: the reference, with class means that are rounded otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import ndfast
from ndfast.train import folder as files
from ndfast.train.records import read_log

# Native and reference came out at most 5.4e-6 apart on digits, and on mnist1d 3.0e-7
# (reviewkd++) to 1.0e-4 (dkd++).
TOLERANCE = 1e-3
# Of ResNet-56 to ResNet-20 at a rate of 0.1 a step's loss was 2.6e-2 apart after 40 steps, and at
# any step at most 1.4 times as far as by then with the class means rounded otherwise.
TIMES_A_ROUNDING = 10
# One may happen to do little. Of ResNet-20 on another processor a step's loss was 74 times as far
# apart as the first rounding took it by then, and just as far as the second, third and fourth.
ROUNDINGS = 3


def compare_trajectories(
    fused: Path, reference: Path, rounded: Callable[[int], Path] | None = None
) -> dict[str, Any]:
    """How far two runs from the same seed are apart.

    Args:
        fused: the folder of a run that logged every step.
        reference: of another.
        rounded: makes another, the reference with `round_otherwise` of a seed, and returns its
            folder; called where the first two are further apart than the tolerance, and again,
            `ROUNDINGS` times at most, where they are than this allows.

    Returns:
        "max_loss_difference": of the steps' losses, relative to the reference's;
        "parameter_difference": the L2 norm of the final weights' difference, relative to the norm
        of the reference's; "steps"; "tolerance"; "rounding": None, or the largest such differences
        of the rounded runs, "runs", their number, and "times", how many times them is allowed; and
        "agrees": whether no loss and not the parameters are further apart than the tolerance, or
        than so many times a rounded run's by the same step.
    """
    losses, parameters = _differences(fused, reference)
    allowed, allowed_of_parameters = torch.full_like(losses, TOLERANCE), TOLERANCE
    found: dict[str, Any] = {
        "steps": len(losses),
        "max_loss_difference": losses.max().item(),
        "parameter_difference": parameters,
        "tolerance": TOLERANCE,
        "rounding": None,
    }
    so_far, of_parameters = torch.zeros_like(losses), 0.0
    for seed in range(ROUNDINGS):
        if rounded is None or _within(losses, parameters, allowed, allowed_of_parameters):
            break
        of_losses, of_weights = _differences(rounded(seed), reference)
        so_far = torch.maximum(so_far, of_losses.cummax(dim=0).values)
        of_parameters = max(of_parameters, of_weights)
        allowed = (TIMES_A_ROUNDING * so_far).clamp(min=TOLERANCE)
        allowed_of_parameters = max(TIMES_A_ROUNDING * of_parameters, TOLERANCE)
        found["rounding"] = {
            "max_loss_difference": so_far[-1].item(),
            "parameter_difference": of_parameters,
            "runs": seed + 1,
            "times": TIMES_A_ROUNDING,
        }
    return found | {"agrees": _within(losses, parameters, allowed, allowed_of_parameters)}


def round_otherwise(means: Tensor, seed: int) -> Tensor:
    """Each number of the class means [K, D] as its neighbour above or below."""
    up = torch.rand(means.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    towards = torch.where(up, torch.inf, -torch.inf).to(means)
    return torch.nextafter(means, towards)


def write_rounded_otherwise(source: Path, path: Path, seed: int) -> None:
    """`round_otherwise` of a file of class means, which says of itself what ``source`` does."""
    told = ndfast.load_class_means_metadata(source)
    about = {key: told[key] for key in told if isinstance(told[key], str) and key != "sha256"}
    means = round_otherwise(ndfast.load_class_means(source), seed)
    ndfast.save_class_means(path, means, counts=told.get("counts"), **about)


def _within(losses: Tensor, parameters: float, allowed: Tensor, of_parameters: float) -> bool:
    return bool((losses <= allowed).all()) and parameters <= of_parameters  # NaN is not


def _differences(run: Path, reference: Path) -> tuple[Tensor, float]:
    """Of each step's loss, and of the parameters, relative to the reference's."""
    ours, theirs = (_step_losses(folder) for folder in (run, reference))
    our_weights, their_weights = (_parameters(folder) for folder in (run, reference))
    parameters = ((our_weights - their_weights).norm() / their_weights.norm()).item()
    return (ours - theirs).abs() / theirs.abs(), parameters


def _step_losses(run: Path) -> Tensor:
    records = read_log(run / files.LOG)
    losses = [record["loss"] for record in records if record["event"] == "step"]
    nan = float("nan")  # null in the log
    return torch.tensor([nan if loss is None else loss for loss in losses], dtype=torch.float64)


def _parameters(run: Path) -> Tensor:
    """The student's, without the statistics of its normalisation."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    tensors = sorted(load_file(run / files.MODEL).items())
    return torch.cat(
        [value.flatten().double() for name, value in tensors if not name.endswith(statistics)]
    )
