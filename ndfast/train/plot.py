"""The picture of a run: its curves by epoch."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")
PANELS = {
    "accuracy": "test accuracy",
    "cross_entropy": "test cross entropy, nats",
    "norm_ratio": "feature norm, mean ‖s‖ / mean ‖t‖",
    "cosine": "cosine of the feature to the class mean",
}


def plot_curves(results: dict[str, Any], path: Path) -> None:
    """Draws each method's curves, the mean over the seeds in a band of one standard deviation.

    Args:
        results: from `ndfast.train.report.summarise`.
        path: where to; the suffix tells the format.
    """
    config, methods = results["config"], results["methods"]
    teacher = results["teacher"] | {"norm_ratio": 1.0}
    figure = Figure(figsize=(10, 6.8), dpi=150, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for panel, (metric, title) in zip(axes.flat, PANELS.items(), strict=True):
        curves = {method: np.array(found["curves"][metric]) for method, found in methods.items()}
        for colour, (method, of_seeds) in zip(cycle(COLOURS), curves.items(), strict=False):
            _draw_band(panel, of_seeds, colour, method)
        panel.axhline(teacher[metric], color="#444444", ls=(0, (4, 3)), lw=1.2, label="teacher")
        panel.set_ylim(_late_range([*curves.values(), np.array([[teacher[metric]]])]))
        panel.set_title(title, loc="left", fontsize=10.5)
        panel.grid(color="#e8e8e8", lw=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    for panel in axes[1]:
        panel.set_xlabel("epoch")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    seeds = "1 seed" if config["seeds"] == 1 else f"mean ± std over {config['seeds']} seeds"
    figure.suptitle(
        f"{config['data']}: students of {results['student']['parameters']:,} parameters, teacher "
        f"of {teacher['parameters']:,}; {seeds}",
        fontsize=12,
    )
    figure.savefig(path)


def _draw_band(panel: Axes, of_seeds: np.ndarray, colour: str, method: str) -> None:
    epochs = np.arange(1, of_seeds.shape[1] + 1)
    mean = of_seeds.mean(axis=0)
    marker = "o" if len(epochs) == 1 else None
    panel.plot(epochs, mean, color=colour, lw=1.8, marker=marker, label=method)
    if len(of_seeds) > 1:
        std = of_seeds.std(axis=0, ddof=1)
        panel.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.15, lw=0)


def _late_range(curves: list[np.ndarray]) -> tuple[float, float]:
    """Without the first fifth's plunge, beside which the methods could not be told apart."""
    late = np.concatenate([of_seeds.mean(axis=0)[of_seeds.shape[1] // 5 :] for of_seeds in curves])
    margin = 0.08 * np.ptp(late) or 0.1
    return late.min() - margin, late.max() + margin
