"""The picture of a run: its curves by epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
TEACHER_COLOUR = "#444444"
PANELS = {
    "accuracy": "test accuracy",
    "cross_entropy": "test cross entropy (nats)",
    "norm_ratio": "feature norm, mean ‖s‖ / mean ‖t‖",
    "cosine": "cosine of the feature to its class mean",
}


def plot_curves(results: dict[str, Any], path: Path) -> None:
    """Draws each method's curves, the mean over the seeds in a band of one standard deviation.

    Args:
        results: from `ndfast.train.report.summarise`.
        path: where to; the suffix tells the format.
    """
    figure = Figure(figsize=(10, 6.4), layout="constrained", dpi=150)
    teacher = results["teacher"] | {"norm_ratio": 1.0}
    axes = figure.subplots(2, 2, sharex=True)
    for panel, (metric, title) in zip(axes.flat, PANELS.items(), strict=True):
        for colour, (method, found) in zip(COLOURS, results["methods"].items(), strict=False):
            _draw_band(panel, np.array(found["curves"][metric]), colour, method)
        panel.axhline(teacher[metric], color=TEACHER_COLOUR, ls=(0, (4, 3)), lw=1, label="teacher")
        _focus(panel, metric, results)
        panel.set_title(title, loc="left", fontsize=10)
        panel.grid(color="#e6e6e6", lw=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    for panel in axes[1]:
        panel.set_xlabel("epoch")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    config = results["config"]
    seeds = "1 seed" if config["seeds"] == 1 else f"mean ± std of {config['seeds']} seeds"
    figure.suptitle(
        f"{config['data']}: {results['student']['dim']}-wide student, "
        f"{teacher['dim']}-wide teacher, {seeds}",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    figure.savefig(path)


def _draw_band(panel: Axes, curves: np.ndarray, colour: str, method: str) -> None:
    epochs = np.arange(1, curves.shape[1] + 1)
    mean = curves.mean(axis=0)
    marker = "o" if len(epochs) == 1 else None
    panel.plot(epochs, mean, color=colour, lw=1.8, marker=marker, label=method)
    if len(curves) > 1:
        std = curves.std(axis=0, ddof=1)
        panel.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.15, lw=0)


def _focus(panel: Axes, metric: str, results: dict[str, Any]) -> None:
    """Cuts off the first fifth's plunge, beside which the methods could not be told apart."""
    means = [np.mean(found["curves"][metric], axis=0) for found in results["methods"].values()]
    late = np.concatenate([mean[len(mean) // 5 :] for mean in means])
    low, high = late.min(), late.max()
    margin = 0.1 * (high - low) or 0.1
    panel.set_ylim(low - margin, high + margin)
