"""Methods compared: students of one teacher by each method from the same seeds, in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from scipy.stats import ttest_rel

import ndfast
from ndfast.train import files
from ndfast.train.compare.step_times import measure_step_times
from ndfast.train.config.methods import METHODS
from ndfast.train.config.train_config import TrainConfig, without_losses
from ndfast.train.data import build_data
from ndfast.train.distill.kept_outputs import check_serves_all_seeds, find_teacher
from ndfast.train.engine.verdicts import summarise_checks
from ndfast.train.machine.processes import build_accelerator, resolve_precision, session
from ndfast.train.machine.progress import Bars
from ndfast.train.report import build_comparison_table, plot_comparison, write_comparison_page
from ndfast.train.runs import folder
from ndfast.train.runs.run import Results, resolve_backend, run_once, train_teacher

METRIC = "accuracy"
PICTURE = "curves.png"


def compare(
    configs: Mapping[str, TrainConfig], seeds: int, console: Console, step_times: bool = False
) -> dict[str, Any]:
    """Trains a student for each method and seed, and writes what it found into the configs' folder.

    The runs lie in its folder `runs`; those that are there already are not done again where the
    comparison is resumed, so that methods and seeds can be added.

    Args:
        configs: by method; they differ in their losses.
        seeds: students a method, each of its own seed, from the configs' on.
        console: where progress and the table go.
        step_times: also measure the time of a step of each method.

    Returns:
        What `results.json` holds: "config" (of the first method, with "methods" and "seeds"),
        "environment", "teacher", "student", "data"; "runs", by method the results of each seed's
        run; "pairs", see `pair_differences`; "loss_checks", see `loss_checks`; "step_ms", see
        `ndfast.train.compare.step_times`, or None.

    Raises:
        ConfigError: several seeds are to read outputs that are kept for one data seed, and none is
            given.
        ConfigError, CheckpointError, FloatingPointError: as `ndfast.train.runs.run.run`.
    """
    precision = resolve_precision(next(iter(configs.values())).precision)
    configs = {method: replace(chosen, precision=precision) for method, chosen in configs.items()}
    config = next(iter(configs.values()))
    with (
        session(config, console) as (accelerator, bars),
        folder.opened(without_losses(config), accelerator),
    ):
        shared = _prepare(config, bars, seeds)
        configs = {method: replace(chosen, **shared) for method, chosen in configs.items()}
        backends = {
            method: resolve_backend(accelerator, chosen.backend)
            for method, chosen in configs.items()
        }
        runs = {
            method: [
                run_once(_run_config(chosen, seed, backends[method]), bars)
                for seed in range(chosen.seed, chosen.seed + seeds)
            ]
            for method, chosen in configs.items()
        }
        step_ms = measure_step_times(configs, backends, bars) if step_times else None
        environment = folder.run_environment(accelerator)
    first = runs[config.method][0]
    results = {
        "config": asdict(config) | {"methods": list(configs), "seeds": seeds},
        "environment": environment,
        "teacher": first["teacher"],
        "student": first["student"],
        "data": first["data"],
        "runs": runs,
        "pairs": pair_differences(runs),
        "loss_checks": loss_checks(runs, backends),
        "step_ms": step_ms,
    }
    if accelerator.is_main_process:
        out = Path(config.out)
        with files.writing_results(out, "runs"):
            plot_comparison(results, out / PICTURE)
            write_comparison_page(out / folder.REPORT, results)
            files.write_json(out / folder.RESULTS, results)
        console.print(build_comparison_table(results))
        console.print(f"Written to {out}: {folder.RESULTS}, {folder.REPORT}, {PICTURE}, runs/")
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


def loss_checks(
    runs: dict[str, list[Results]], backends: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Whether the fused loss and its gradient were the reference's, in the runs of each method.

    Returns:
        By method, if the ND loss was checked in it, be it a probe: "backend", and what
        `ndfast.train.engine.verdicts.summarise_checks` gives of the runs.
    """
    found = {}
    for method, of_seeds in runs.items():
        summary = summarise_checks(
            [
                {"seed": run["config"]["seed"], **run["loss_check"]}
                for run in of_seeds
                if run.get("loss_check")  # a run of an earlier version has none
            ]
        )
        if summary is not None:
            found[method] = {"backend": backends[method], **summary}
    return found


def _prepare(config: TrainConfig, bars: Bars, seeds: int) -> dict[str, Any]:
    """The teacher and its class means, once for all runs: the fields that lead there."""
    if config.teacher_outputs is not None and seeds > 1 and config.data_seed is None:
        check_serves_all_seeds(config.teacher_outputs)
    accelerator, shared = build_accelerator(config), without_losses(config)
    config = train_teacher(config, bars)
    data = build_data(config.data, config.data_dir, config.image_size)
    teacher, metadata, _ = find_teacher(accelerator, config, data, bars)
    path = Path(config.out) / files.CLASS_MEANS
    if accelerator.is_main_process:
        assert teacher.class_means is not None
        folder.begin(shared)
        ndfast.save_class_means(path, teacher.class_means, **metadata)
    accelerator.wait_for_everyone()
    return {"teacher_weights": config.teacher_weights, "class_means": str(path)}


def _run_config(config: TrainConfig, seed: int, backend: str) -> TrainConfig:
    out = Path(config.out) / folder.RUNS / f"{config.method}-seed{seed}"
    return replace(
        config,
        seed=seed,
        probe=True,  # every method's features are measured in the teacher's space
        check_loss=backend != "reference",
        out=str(out),
        resume=(out / folder.CONFIG).exists(),
        overwrite=False,
    )
