"""Keeps what a comparison found: `python docs/evidence/collect.py FOLDER FILE.json`.

FOLDER is the one of `ndfast compare`, FILE.json in this folder. Runs that the file has already, of
other seeds or methods of the same training, stay: so seeds can be added on another day, on another
machine (`ndfast compare --seed`). A longer schedule is another training, and of another file.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

import ndfast
from ndfast.files import write_whole
from ndfast.train.compare.comparison import loss_checks, pair_differences
from ndfast.train.config.train_config import HOW, LOSSES, MACHINE, WHAT, TrainConfig
from ndfast.train.report import plot_comparison

ENVIRONMENT = ("git", "python", "ndfast", "torch", "numpy", "simd", "device", "processes")
OWN_TO_A_RUN = ("seed", "resume", "overwrite", "probe", "check_loss")
TEACHER = "teacher_sha256"

Found = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--curves", action="store_true", help="keep each epoch")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="of the curves")
    parser.add_argument(
        "--published-means", type=Path, metavar="FILE", help="the authors', to be compared with"
    )
    options = parser.parse_args()
    results = json.loads((options.folder / "results.json").read_text(encoding="utf-8"))
    means = options.folder / "class_means.safetensors"
    found = collect(results, options.curves)
    found[TEACHER] = ndfast.load_class_means_metadata(means)[TEACHER]
    if options.published_means is not None:
        own = ndfast.load_class_means(means)
        published = ndfast.load_class_means(options.published_means)
        found["class_means"] = compare_class_means(own.numpy(), published.numpy())
    if options.file.exists():
        found = merge(json.loads(options.file.read_text(encoding="utf-8")), found)
    found = conclude(found)
    write_whole(options.file, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    if options.picture is not None:
        plot_comparison(found, options.picture)


def collect(results: Found, curves: bool) -> Found:
    """Of a comparison's results what is kept: no path, no time, nothing that can be computed."""
    config = results["config"]
    kept = [
        item
        for item in fields(TrainConfig)
        if item.name not in OWN_TO_A_RUN and item.metadata["metavar"] not in ("FILE", "DIR")
    ]
    losses = [item.name for item in kept if item.metadata["group"] == LOSSES]
    return {
        "config": {item.name: config[item.name] for item in kept},
        "losses": {
            method: {name: runs[0]["config"][name] for name in losses}
            for method, runs in results["runs"].items()
        },
        **{name: results[name] for name in ("teacher", "student", "data")},
        "backends": {name: check["backend"] for name, check in results["loss_checks"].items()},
        "runs": {
            method: [keep_run(run, curves) for run in runs]
            for method, runs in results["runs"].items()
        },
    }


def keep_run(run: Found, curves: bool) -> Found:
    epochs = run["epochs"] if curves else [run["epochs"][0], run["epochs"][-1]]
    return {
        "config": {"seed": run["config"]["seed"]},
        "environment": {name: run["environment"].get(name) for name in ENVIRONMENT},
        "sha256": run["sha256"],
        "test": run["test"],
        "epochs": [
            {name: epoch[name] for name in ("epoch", "train", "test")} for epoch in rounded(epochs)
        ],
        "loss_check": run["loss_check"],
    }


def rounded(value: Any) -> Any:
    """To five digits, where only a picture is drawn of it."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def merge(before: Found, found: Found) -> Found:
    """Both files' runs; of the same method and seed those of ``found``."""
    found = json.loads(json.dumps(found))  # tuples become lists, as they are in a file
    shared = [
        item.name
        for item in fields(TrainConfig)
        if item.metadata["group"] in (WHAT, HOW, MACHINE) and not item.metadata["may_change"]
    ]
    both = [(name, before.get(name), found.get(name)) for name in (TEACHER, "data")]
    both += [
        (name, before["config"].get(name), found["config"][name])
        for name in shared
        if name in found["config"]
    ]
    both += [
        (method, before["losses"][method], losses)
        for method, losses in found["losses"].items()
        if method in before["losses"]
    ]
    for name, was, now in both:
        if was != now:
            sys.exit(f"{name}: got {now!r}, the file is of {was!r}; expected another file")
    runs = {}
    for method in dict.fromkeys((*before["runs"], *found["runs"])):
        by_seed = {
            run["config"]["seed"]: run
            for source in (before, found)
            for run in source["runs"].get(method, [])
        }
        runs[method] = [by_seed[seed] for seed in sorted(by_seed)]
    by_method = {name: before[name] | found[name] for name in ("backends", "losses")}
    return {**before, **found, **by_method, "runs": runs}


def conclude(found: Found) -> Found:
    """With what follows from the runs: pairs of the same seeds, and whether the loss was right."""
    runs = found["runs"]
    pairs = []
    for plus in runs:
        base = plus.removesuffix("++")
        if plus == base or base not in runs:
            continue
        of_both = set.intersection(
            *({run["config"]["seed"] for run in runs[name]} for name in (base, plus))
        )
        if not of_both:
            continue
        chosen = {
            name: [run for run in runs[name] if run["config"]["seed"] in of_both]
            for name in (base, plus)
        }
        pairs += pair_differences(chosen)
    methods = {
        "methods": list(runs),
        "seeds": max(len(of_seeds) for of_seeds in runs.values()),
    }
    return {
        **found,
        "config": found["config"] | methods,
        "pairs": pairs,
        "loss_checks": loss_checks(runs, found["backends"]),
        "step_ms": None,
    }


def compare_class_means(own: np.ndarray, published: np.ndarray) -> Found:
    """How far two teachers' class means [K, D] say the same of which classes lie near each other.

    Each set is taken less its mean over the classes; "correlation" is between the K(K − 1)/2
    cosines of the two, "permuted" the same with the classes of one in another order.
    """

    def cosines(means: np.ndarray) -> np.ndarray:
        centred = means.astype(np.float64) - means.mean(axis=0, dtype=np.float64)
        directions = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        return (directions @ directions.T)[np.triu_indices(len(means), 1)]

    order = np.random.default_rng(0).permutation(len(own))
    return {
        "correlation": float(np.corrcoef(cosines(own), cosines(published))[0, 1]),
        "permuted": float(np.corrcoef(cosines(own[order]), cosines(published))[0, 1]),
        "mean_norms": [float(np.linalg.norm(means, axis=1).mean()) for means in (own, published)],
    }


if __name__ == "__main__":
    main()
