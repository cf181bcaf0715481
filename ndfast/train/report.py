"""What a run found: one dict, which `results.json` holds, and the table that is drawn from it."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.table import Table
from torch import nn

from ndfast.environment import describe_environment
from ndfast.train.comparison import NO_ND
from ndfast.train.experiment import Experiment, StudentRun
from ndfast.train.loop import METRICS

Results = dict[str, Any]


def summarise(
    experiment: Experiment,
    backend: str,
    runs: dict[str, list[StudentRun]],
    step_ms: dict[str, dict[str, float]],
    trajectories: dict[str, Any] | None,
) -> Results:
    """Everything that a run found, as JSON takes it.

    Args:
        experiment: the teacher and the data.
        backend: which computed the ND loss.
        runs: of each method, by seed.
        step_ms: from `ndfast.train.comparison.measure_step_times`.
        trajectories: from `ndfast.train.comparison.compare_trajectories`; None where no fused loss
            ran.

    Returns:
        "config"; "environment"; "backend"; "teacher"; "student"; "methods", by name the last
        epoch's metrics over the seeds, the step times in ms and the curves, [seed][epoch];
        "trajectories".
    """
    accelerator, config = experiment.accelerator, experiment.config
    student = experiment.build_student("ce", seed=0, probe=False)
    norm = experiment.teacher_metrics["norm"]
    return {
        "config": asdict(config) | {"out": str(config.out)},
        "environment": describe_environment()
        | {
            "accelerate": version("accelerate"),
            "device": str(accelerator.device),
            "processes": accelerator.num_processes,
        },
        "backend": backend,
        "data": {"train": len(experiment.data.train), "test": len(experiment.data.test)},
        "teacher": _describe(experiment.teacher, config.teacher_channels)
        | experiment.teacher_metrics,
        "student": _describe(student, config.student_channels),
        "methods": {
            method: _summarise_method(of_seeds, norm) | {"step_ms": step_ms[method]}
            for method, of_seeds in runs.items()
        },
        "trajectories": trajectories,
    }


def build_table(results: Results) -> Table:
    """The table of a run; every figure in it is in ``results``."""
    config, teacher, student = results["config"], results["teacher"], results["student"]
    table = Table(
        title=f"{config['data']}: students of {student['parameters']:,} parameters, a teacher of "
        f"{teacher['parameters']:,}, {config['seeds']} seeds",
        caption=_caption(results),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    timed = {name for found in results["methods"].values() for name in found["step_ms"]}
    timings = [name for name in (NO_ND, results["backend"], "reference") if name in timed]
    table.add_column("")
    for heading in ("accuracy, %", "‖s‖", "‖s‖/‖t‖", "cos"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in dict.fromkeys(timings):
        table.add_column(f"step, ms\n{name}", justify="right")
    table.add_row(
        "teacher",
        f"{100 * teacher['accuracy']:.2f}       ",  # its digits under those of the means
        f"{teacher['norm']:.2f}",
        "1.00",
        f"{teacher['cosine']:.3f}",
        end_section=True,
    )
    for method, found in results["methods"].items():
        step_ms = [found["step_ms"].get(name) for name in dict.fromkeys(timings)]
        table.add_row(
            method,
            _mean_and_std(found["accuracy"]),
            f"{found['norm']['mean']:.2f}",
            f"{found['norm_ratio']['mean']:.2f}",
            f"{found['cosine']['mean']:.3f}",
            *("" if time is None else f"{time:.2f}" for time in step_ms),
        )
    return table


def _mean_and_std(accuracy: dict[str, Any]) -> str:
    std = "   –" if accuracy["std"] is None else f"{100 * accuracy['std']:.2f}"
    return f"{100 * accuracy['mean']:.2f} ± {std}"


def _caption(results: Results) -> str:
    legend = (
        "Means over the seeds on the test set; ± is one standard deviation. s: the student's "
        "feature projected to the teacher's width (by a probe where the method has no ND loss), "
        "t: the teacher's; cos: s to the teacher's mean of the label's class. Steps: medians."
    )
    found = results["trajectories"]
    if found is None:
        return f"{legend}\nNo fused loss ran: nothing to compare with the reference."
    verdict = "agree" if found["agrees"] else "DISAGREE"
    return (
        f"{legend}\n{results['backend']} and reference {verdict}: from the same seed, over "
        f"{found['steps']:,} steps, their losses differ by at most "
        f"{found['max_loss_difference']:.1e} and the final parameters by "
        f"{found['parameter_difference']:.1e}, relatively (tolerance {found['tolerance']:g})."
    )


def _describe(network: nn.Module, channels: tuple[int, ...]) -> dict[str, int]:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": parameters, "dim": channels[-1]}


def _summarise_method(runs: list[StudentRun], teacher_norm: float) -> dict[str, Any]:
    curves = {
        metric: [[epoch[metric] for epoch in run.curves] for run in runs] for metric in METRICS
    }
    curves["norm_ratio"] = [[norm / teacher_norm for norm in run] for run in curves["norm"]]
    last = {metric: _spread([run[-1] for run in of_runs]) for metric, of_runs in curves.items()}
    steps = [run.losses for run in runs]
    return {**last, "curves": curves, "step_losses": steps}


def _spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds; one seed has no deviation."""
    std = stdev(values) if len(values) > 1 else None
    return {"mean": fmean(values), "std": std, "seeds": values}
