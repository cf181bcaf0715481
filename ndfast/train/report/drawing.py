"""How the pictures look, and the curves by epoch that runs and comparisons have alike."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from io import BytesIO, StringIO
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ndfast.files import write_whole
from ndfast.train.report.tables import Results, headline

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")
INK, GRID = "#2b2b2b", "#e6e6e6"
# In a page the two follow its colour scheme.
_SCHEMES = (
    "<style>svg{--ink:#2b2b2b;--grid:#e6e6e6}"
    "@media(prefers-color-scheme:dark){svg{--ink:#d5d8dc;--grid:#3a3e44}}</style>"
)
_STYLE: Any = {  # by matplotlib's names
    "svg.fonttype": "path",
    "svg.hashsalt": "ndfast",  # the same bytes each time
    "text.parse_math": False,  # a name may have a $ in it
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "font.size": 9.5,
}
PANELS = {
    "accuracy": "accuracy",
    "cross_entropy": "cross entropy, nats",
    "norm_ratio": "feature norm, mean ‖s‖ / mean ‖t‖",
    "cosine": "cosine of the feature to the class mean",
}

# By label and metric, [seeds, epochs]; NaN where there is no value.
Curves = dict[str, dict[str, np.ndarray]]


# All drawing and saving is done within; what matplotlib was set to comes back.
style = partial(matplotlib.rc_context, _STYLE)


def to_svg(figure: Figure) -> str:
    """The figure on a transparent ground, in light or dark as its reader has it."""
    file = StringIO()
    with style():
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue().replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    head, defs, rest = svg.partition("<defs>")
    return head + _SCHEMES + defs + rest


def plot_comparison(results: Results, path: Path) -> None:
    """Draws each method's curves, the mean over the seeds in a band of one standard deviation."""
    file = BytesIO()
    with style():
        figure = draw_curves(comparison_curves(results), results["teacher"]) or Figure()
        figure.suptitle(headline(results), fontsize=11)
        figure.savefig(file, format="png", dpi=150)
    write_whole(path, file.getvalue())


def comparison_curves(results: Results) -> Curves:
    """The metrics on the test set of each method."""
    return {
        method: _collect([[epoch["test"] for epoch in run["epochs"]] for run in runs])
        for method, runs in results["runs"].items()
    }


def run_curves(results: Results) -> Curves:
    """The metrics of one run: on the test set, of the averaged weights there, and in training."""
    epochs = results["epochs"]
    training = [
        {"accuracy": epoch["train"].get("accuracy"), "cross_entropy": epoch["train"].get("ce")}
        for epoch in epochs
    ]
    curves = {"test": [epoch["test"] for epoch in epochs], "training": training}
    if results["ema"] is not None:
        curves["test, averaged weights"] = [epoch["ema"] for epoch in epochs]
    return {label: _collect([of_epochs]) for label, of_epochs in curves.items()}


def draw_curves(curves: Curves, teacher: dict[str, Any] | None) -> Figure | None:
    """A panel for each metric that is there, by epoch; None where there is nothing to draw."""
    drawn = [name for name in PANELS if any(name in found for found in curves.values())]
    if not drawn:
        return None
    reached = {} if teacher is None else teacher | {"norm_ratio": 1.0}
    rows = -(-len(drawn) // 2)
    with style():
        figure = Figure(figsize=(10, 3.1 * rows + 0.6), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False)
        for panel, name in zip(axes.flat, drawn, strict=False):
            present = {label: found[name] for label, found in curves.items() if name in found}
            _draw_panel(panel, name, present, curves, reached.get(name))
        for panel in axes.flat[len(drawn) :]:
            panel.set_visible(False)
        handles = {
            label: handle
            for panel in axes.flat
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=7)
    return figure


def _draw_panel(
    panel: Axes,
    name: str,
    present: dict[str, np.ndarray],
    curves: Curves,
    teacher: float | None,
) -> None:
    styles = line_styles(curves)
    for label, of_seeds in present.items():
        _draw_band(panel, of_seeds, label, *styles[label])
    shown = list(present.values())
    if teacher is not None:
        panel.axhline(teacher, color=INK, ls=(0, (4, 3)), lw=1.2, label="teacher")
        shown.append(np.array([[teacher]]))
    panel.set_ylim(late_range(shown))
    panel.set_title(PANELS[name])
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    if name == "accuracy":
        panel.yaxis.set_major_formatter(PercentFormatter(xmax=1))


def line_styles(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and dashes by label: kd and kd++ have one colour, and kd is dotted beside kd++."""
    labels = list(labels)
    families = dict.fromkeys(label.removesuffix("++") for label in labels)
    colours = dict(zip(families, cycle(COLOURS), strict=False))
    return {
        label: (colours[label.removesuffix("++")], ":" if f"{label}++" in labels else "-")
        for label in labels
    }


def _draw_band(panel: Axes, of_seeds: np.ndarray, label: str, colour: str, dashes: str) -> None:
    epochs = np.arange(1, of_seeds.shape[1] + 1)
    mean = of_seeds.mean(axis=0)
    marker = "o" if len(epochs) == 1 else None
    panel.plot(epochs, mean, color=colour, ls=dashes, lw=1.8, marker=marker, label=label)
    if len(of_seeds) > 1:
        std = of_seeds.std(axis=0, ddof=1)
        panel.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.15, lw=0)


def late_range(curves: list[np.ndarray]) -> tuple[float, float]:
    """The y-axis without the first fifth's plunge, which would press the lines together."""
    late = np.concatenate([of_seeds.mean(axis=0)[of_seeds.shape[1] // 5 :] for of_seeds in curves])
    late = late[np.isfinite(late)]
    if not late.size:
        return 0.0, 1.0
    margin = 0.08 * np.ptp(late) or 0.1
    return late.min() - margin, late.max() + margin


def _collect(of_seeds: list[list[dict[str, Any]]]) -> dict[str, np.ndarray]:
    """By metric, [seeds, epochs]; a metric that no epoch has is left out."""
    found = {
        name: np.array(
            [[epoch.get(name) for epoch in epochs] for epochs in of_seeds], dtype=np.float64
        )
        for name in PANELS
    }
    return {name: values for name, values in found.items() if np.isfinite(values).any()}
