"""The tables of runs, comparisons and detectors, as terminal and page show them alike."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

from rich.console import Group

from ndfast.train.engine.verdicts import in_words
from ndfast.train.report.grid import NONE, Grid, count, fixed, for_terminal, percent

Results = dict[str, Any]

PARTS = ("data", "teacher", "forward", "nd", "backward", "optimizer")  # of a step, in their order
_LEGEND = (
    "On the test set. s: the student's feature, projected to the teacher's width where that "
    "differs (by a probe where the method has no ND loss), t: the teacher's; cos: to the teacher's "
    "mean feature of the label's class."
)


def build_run_table(results: Results) -> Group:
    """The tables of one run for the terminal; every figure in them is in ``results``."""
    return for_terminal(run_grids(results))


def build_comparison_table(results: Results) -> Group:
    """The tables of a comparison for the terminal, made of the figures in ``results``."""
    return for_terminal(comparison_grids(results))


def build_detection_table(results: Results) -> Group:
    """What a detector and its students reached, for the terminal."""
    return for_terminal([_detection_grid(results)])


def run_grids(results: Results) -> list[Grid]:
    """The tables of one run: what it reached, and the time of its step."""
    rows = []
    if results["teacher"] is not None:
        rows.append(_metrics_row("teacher", results["teacher"] | {"norm_ratio": 1.0}))
    rows.append(_metrics_row("student", results["test"]))
    if results["ema"] is not None:
        rows.append(_metrics_row("averaged", results["ema"]))
    speed = results["images_per_s"]
    happened = (
        f"{count(results['steps'], 'step')}, {results['skipped']:,} skipped"
        + (f", {speed:,.0f} images/s" if speed is not None else "")
        + f". SHA-256 of the weights: {results['sha256'][:16]}…"
    )
    head = ("", "accuracy, %", "cross entropy", "‖s‖", "‖s‖/‖t‖", "cos")
    grids = [Grid(headline(results), head, rows, f"{_LEGEND} {happened}")]
    parts = {name: results["parts_ms"][name] for name in PARTS if name in results["parts_ms"]}
    if parts:
        grids.append(_step_grid(parts, results["backend"]))
    check = results.get("loss_check")
    if check is not None:
        shown = {"backend": results["backend"] or NONE, **check}
        grids.append(_checks_grid({results["config"]["method"]: shown}))
    return grids


def comparison_grids(results: Results) -> list[Grid]:
    """The tables of a comparison: the methods, what the ND loss adds, fused against reference."""
    grids = [_methods_grid(results)]
    if results["pairs"]:
        grids.append(_pairs_grid(results))
    if results.get("loss_checks"):
        grids.append(_checks_grid(results["loss_checks"]))
    return grids


def detection_grids(results: Results, logs: dict[str, list[dict[str, Any]]]) -> list[Grid]:
    """The tables of a detector's students: what each reached, and how its training went."""
    trainings = []
    for name, log in logs.items():
        epochs = [record for record in log if record["event"] == "epoch"]
        speeds = [speed for epoch in epochs if (speed := epoch["images_per_s"]) is not None]
        speed = f"{fmean(speeds):,.1f}" if speeds else NONE
        steps, skipped = epochs[-1]["step"], results["skipped"][name]
        trainings.append((name, f"{steps:,}", f"{skipped:,}", speed))
    head = ("", "steps", "skipped", "images/s")
    about = "The mean over the epochs, evaluation and checkpoints aside."
    return [_detection_grid(results), Grid("Training", head, trainings, about)]


def headline(results: Results) -> str:
    """What was trained on what, in a line; of a run or of a comparison."""
    config, student, teacher = results["config"], results["student"], results["teacher"]
    methods = config.get("methods", [config["method"]])
    named = ", ".join(methods) if len(methods) <= 3 else f"{len(methods)} methods"
    line = f"{named} on {results['data']['name']}: {_network(student)}"
    return line if teacher is None else f"{line}, teacher {_network(teacher)}"


def added_time(results: Results, pair: dict[str, Any]) -> dict[str, float]:
    """What the ND loss adds to a step of a pair's method, by backend, as a share of that step."""
    step_ms = results["step_ms"]
    (base,) = step_ms[pair["base"]].values()
    return {backend: time / base - 1 for backend, time in step_ms[pair["plus"]].items()}


def _network(described: dict[str, Any]) -> str:
    return f"{described['name']} ({described['parameters']:,} parameters)"


def _metrics_row(name: str, metrics: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        percent(metrics.get("accuracy")),
        fixed(metrics.get("cross_entropy"), 4),
        fixed(metrics.get("norm"), 2),
        fixed(metrics.get("norm_ratio"), 2),
        fixed(metrics.get("cosine"), 3),
    )


def _methods_grid(results: Results) -> Grid:
    step_ms, teacher = results["step_ms"] or {}, results["teacher"]
    backends = list(dict.fromkeys(name for times in step_ms.values() for name in times))
    rows = []
    if teacher is not None:
        reached = [percent(teacher["accuracy"]), fixed(teacher["norm"], 2), "1.00"]
        rows.append(("teacher", *reached, fixed(teacher["cosine"], 3), *([""] * len(backends))))
    for method, runs in results["runs"].items():
        accuracy, std = over_seeds(runs, "accuracy")
        times = [step_ms[method].get(backend) for backend in backends]
        rows.append(
            (
                method,
                f"{percent(accuracy)} ± {percent(std)}",
                fixed(over_seeds(runs, "norm")[0], 2),
                fixed(over_seeds(runs, "norm_ratio")[0], 2),
                fixed(over_seeds(runs, "cosine")[0], 3),
                *("" if time is None else f"{time:.2f}" for time in times),
            )
        )
    head = ("", "accuracy, %", "‖s‖", "‖s‖/‖t‖", "cos", *(f"step, ms\n{name}" for name in backends))
    seeds = results["config"]["seeds"]
    caption = f"{_LEGEND} Means over {count(seeds, 'seed')} ± one standard deviation."
    return Grid(headline(results), head, rows, caption + (" Steps: medians." if step_ms else ""))


def _pairs_grid(results: Results) -> Grid:
    rows = []
    for pair in results["pairs"]:
        interval = NONE
        if pair["interval"] is not None:
            low, high = (f"{100 * end:+.2f}" for end in pair["interval"])
            interval = f"{low} to {high}"
        row = [f"{pair['plus']} − {pair['base']}", f"{100 * pair['mean']:+.2f}", interval]
        row.append(fixed(pair["p_value"], 4))
        if results["step_ms"]:
            added = added_time(results, pair).items()
            row.append(", ".join(f"{name} {100 * share:+.1f} %" for name, share in added))
        rows.append(tuple(row))
    head = ["", f"{pair['metric']}, points", "95 % interval", "p"]
    caption = (
        f"Paired by seed, {count(len(pair['differences']), 'pair')}; interval and p by Student's t."
    )
    if results["step_ms"]:
        head.append("step")
        caption += (
            " Step: the median with the ND loss, by the backend that computes it, to the one "
            "without."
        )
    return Grid("What the ND loss adds", tuple(head), rows, caption)


def _step_grid(parts: dict[str, float], backend: str | None) -> Grid:
    step = sum(time for name, time in parts.items() if name != "nd")
    caption = "Medians; the step is their sum."
    if "nd" in parts:
        by = f" (here by the backend {backend})" if backend else ""
        caption += (
            f" nd is the ND loss alone{by}, a part of forward; what its gradient leaves to the "
            "backward pass is in backward. ndfast compare --step-times times whole steps with it "
            "and without."
        )
    times = {**parts, "step": step}
    return Grid(
        "Time of a step",
        ("", *times),
        [
            ("ms", *(f"{time:.2f}" for time in times.values())),
            ("% of the step", *(percent(time / step) for time in times.values())),
        ],
        caption,
    )


def _checks_grid(checks: dict[str, dict[str, Any]]) -> Grid:
    """Fused loss against reference, by method; what is not finite is None."""
    rows = []
    for method, found in checks.items():
        tolerances = dict.fromkeys(map(_scientific, found["tolerances"].values()))
        rows.append(
            (
                method,
                found["backend"],
                f"{found['steps']:,}",
                *map(_scientific, found["differences"].values()),
                ", ".join(tolerances),
                "agree" if found["agrees"] else "DISAGREE",
            )
        )
    head = ("", "backend", "steps", "loss", "gradient", "class\nmeans", "tolerance", "verdict")
    caption = (
        "The ND loss as the training used it, beside the reference in float64 on the same numbers: "
        "the largest relative differences of a step's loss, of a row's gradient, and of a class "
        "mean from the teacher's (learnable ones: of their gradient). In half precision the "
        "tolerance is twice the error of the reference in float32 and rounded."
    )
    refused = [
        in_words(method, found["refused"])
        for method, found in checks.items()
        if found["refused"] is not None
    ]
    return Grid("Fused loss and reference", head, rows, " ".join([caption, *refused]))


def _scientific(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.1e}" if value else "0"


def _detection_grid(results: Results) -> Grid:
    config, data, teacher = results["config"], results["data"], results["teacher"]
    rows = []
    for name, found in {"teacher": teacher, **results["students"]}.items():
        ratio = found["norm"] / teacher["norm"] if teacher["norm"] else None
        rows.append(
            (
                name,
                percent(found["map50"]),
                percent(found["map"]),
                fixed(found["norm"], 2),
                fixed(ratio, 2),
                fixed(found["cosine"], 3),
            )
        )
    skipped = ", ".join(
        f"{name} {number:,}" for name, number in results["skipped"].items() if number
    )
    caption = (
        f"On {count(data['test'], 'test image')}, {data['train']:,} trained on. s, t: box features "
        "of the objects themselves, student's and teacher's; cos: to the class mean."
        + (f" Steps skipped: {skipped}." if skipped else "")
    )
    head = ("", "mAP50, %", "mAP, %", "‖s‖", "‖s‖/‖t‖", "cos")
    return Grid(f"{config['model']}, teacher {config['teacher']}", head, rows, caption)


def over_seeds(runs: list[Results], metric: str) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where a run lacks it, or is alone."""
    values = [run["test"].get(metric) for run in runs]
    if None in values:
        return None, None
    return fmean(values), stdev(values) if len(values) > 1 else None
