"""Methods compared: students of one teacher by each method from the same seeds, in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from scipy.stats import ttest_rel

import ndfast
from ndfast.files import reason_of
from ndfast.train import folder as files
from ndfast.train.config import TrainConfig, without_losses
from ndfast.train.data import build_data
from ndfast.train.errors import CheckpointError
from ndfast.train.losses import METHODS
from ndfast.train.processes import build_accelerator, resolve_precision, torch_settings
from ndfast.train.progress import Bars
from ndfast.train.report import build_comparison_table, plot_comparison, write_comparison_page
from ndfast.train.run import Results, leave_together, run_once, teacher_config
from ndfast.train.step_times import measure_step_times
from ndfast.train.teacher import prepare_teacher
from ndfast.train.trajectories import compare_trajectories, write_rounded_otherwise

METRIC = "accuracy"
PICTURE = "curves.png"
ROUNDED_MEANS = "class_means-rounded{seed}.safetensors"


def compare(configs: Mapping[str, TrainConfig], seeds: int, console: Console) -> dict[str, Any]:
    """Trains a student for each method and seed, and writes what it found into the configs' folder.

    The runs lie in its folder `runs`; those that are there already are not done again where the
    comparison is resumed, so that methods and seeds can be added.

    Args:
        configs: by method, a name in `ndfast.train.losses.METHODS`; they differ in their losses.
        seeds: students a method; their seeds are 0 to seeds - 1.
        console: where progress and the table go.

    Returns:
        What `results.json` holds: "config" (of the first method, with "methods" and "seeds"),
        "environment", "teacher", "student", "data"; "runs", by method the results of each seed's
        run; "pairs", see `pair_differences`; "trajectories", by method the "backend" of the fused
        loss, "accuracy_difference", by which it ends above the reference on the test set, and what
        `ndfast.train.trajectories` finds, or None where no fused loss ran; "step_ms", see
        `ndfast.train.step_times`.

    Raises:
        ConfigError, CheckpointError, FloatingPointError: as `ndfast.train.run.run`.
    """
    precision = resolve_precision(next(iter(configs.values())).precision)
    configs = {method: replace(chosen, precision=precision) for method, chosen in configs.items()}
    config = next(iter(configs.values()))
    accelerator = build_accelerator(config)
    with (
        torch_settings(config),
        Bars(console, accelerator.is_main_process) as bars,
        files.opened(without_losses(config), accelerator),
    ):
        shared = _prepare(config, bars)
        configs = {method: replace(chosen, **shared) for method, chosen in configs.items()}
        runs = {
            method: [run_once(_run_config(chosen, seed), bars) for seed in range(seeds)]
            for method, chosen in configs.items()
        }
        fused = {method: found[0]["backend"] for method, found in runs.items()}
        trajectories = {
            method: {"backend": backend}
            | _compare_with_reference(
                accelerator, _run_config(configs[method], 0), runs[method][0], bars
            )
            for method, backend in fused.items()
            if backend not in (None, "reference")
        }
        step_ms = measure_step_times(configs, fused, bars)
    first = runs[config.method][0]
    results = {
        "config": asdict(config) | {"methods": list(configs), "seeds": seeds},
        "environment": files.run_environment(accelerator),
        "teacher": first["teacher"],
        "student": first["student"],
        "data": first["data"],
        "runs": runs,
        "pairs": pair_differences(runs),
        "trajectories": trajectories or None,
        "step_ms": step_ms,
    }
    if accelerator.is_main_process:
        out = Path(config.out)
        try:
            plot_comparison(results, out / PICTURE)
            write_comparison_page(out / files.REPORT, results)
            files.write_json(out / files.RESULTS, results)
        except OSError as error:
            raise CheckpointError(
                f"the results cannot be written to {error.filename or out}: {reason_of(error)}; "
                "the runs are kept, --resume goes on with them"
            ) from error
        console.print(build_comparison_table(results))
        console.print(f"Written to {out}: {files.RESULTS}, {files.REPORT}, {PICTURE}, runs/")
    leave_together(accelerator)
    return results


def pair_differences(runs: dict[str, list[Results]]) -> list[dict[str, Any]]:
    """What the ND loss adds to each method that ran with it and without, seed by seed.

    Returns:
        For each such pair "base", "plus", "metric"; "differences", plus less base, by seed; their
        "mean"; and from two seeds on (else None) the "interval" of 95 % of Student's t and the
        "p_value" of the paired t-test.
    """
    pairs = []
    for base, method in METHODS.items():
        plus = f"{base}++"
        if method.nd or plus not in runs or base not in runs:
            continue
        without, with_nd = ([run["test"][METRIC] for run in runs[name]] for name in (base, plus))
        differences = [ours - theirs for ours, theirs in zip(with_nd, without, strict=True)]
        interval, p_value = None, None
        # Without any scatter Student's t has no interval.
        if len(set(differences)) > 1:
            test = ttest_rel(with_nd, without)
            interval, p_value = [float(end) for end in test.confidence_interval()], test.pvalue
        pairs.append(
            {
                "base": base,
                "plus": plus,
                "metric": METRIC,
                "differences": differences,
                "mean": sum(differences) / len(differences),
                "interval": interval,
                "p_value": None if p_value is None else float(p_value),
            }
        )
    return pairs


def _compare_with_reference(
    accelerator: Accelerator, config: TrainConfig, run: Results, bars: Bars
) -> dict[str, Any]:
    """How a run that is done ends and got there, beside those it is compared with."""
    reference = replace(config, backend="reference", out=f"{config.out}-reference")
    of_reference = run_once(reference, bars)

    def train_rounded(seed: int) -> Path:
        means = Path(config.out).with_name(ROUNDED_MEANS.format(seed=seed))
        if accelerator.is_main_process:
            write_rounded_otherwise(Path(config.class_means), means, seed)
        accelerator.wait_for_everyone()
        rounded = replace(reference, class_means=str(means), out=f"{reference.out}-rounded{seed}")
        run_once(rounded, bars)
        return Path(rounded.out)

    accuracy_difference = run["test"][METRIC] - of_reference["test"][METRIC]
    return {"accuracy_difference": accuracy_difference} | compare_trajectories(
        Path(config.out), Path(reference.out), train_rounded
    )


def _prepare(config: TrainConfig, bars: Bars) -> dict[str, Any]:
    """The teacher and its class means, once for all runs: the fields that lead there."""
    accelerator, shared = build_accelerator(config), without_losses(config)
    if config.teacher_weights is None:
        teacher_run = teacher_config(config)
        run_once(teacher_run, bars)
        config = replace(config, teacher_weights=str(Path(teacher_run.out) / files.MODEL))
    data = build_data(config.data, config.data_dir, config.image_size)
    teacher, about = prepare_teacher(accelerator, config, data, bars)
    path = Path(config.out) / files.CLASS_MEANS
    if accelerator.is_main_process:
        assert teacher.class_means is not None
        files.begin(shared)
        ndfast.save_class_means(path, teacher.class_means, **about)
    accelerator.wait_for_everyone()
    return {"teacher_weights": str(config.teacher_weights), "class_means": str(path)}


def _run_config(config: TrainConfig, seed: int) -> TrainConfig:
    out = Path(config.out) / files.RUNS / f"{config.method}-seed{seed}"
    return replace(
        config,
        seed=seed,
        probe=True,  # every method's features are measured in the teacher's space
        log_every=1,  # the trajectories are compared step by step
        out=str(out),
        resume=(out / files.CONFIG).exists(),
        overwrite=False,
    )
