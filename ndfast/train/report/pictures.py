"""The pictures of a page."""

from __future__ import annotations

from collections.abc import Collection
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ndfast.train.report.drawing import (
    COLOURS,
    INK,
    comparison_curves,
    draw_curves,
    late_range,
    line_styles,
    run_curves,
    style,
)
from ndfast.train.report.grid import percent
from ndfast.train.report.tables import PARTS, Results

LOSSES = {
    "loss": "sum, weighted",
    "ce": "cross entropy",
    "distillation": "distillation",
    "nd": "ND",
}
_ABOUT_PARTS = (
    "Medians in the runs. Forward is the student's pass and its losses, without the ND loss where "
    "that has a colour of its own."
)
MOST_POINTS = 1000  # of a line; more than a picture has pixels
_MOST_COLUMNS = 4

Records = list[dict[str, Any]]
Told = tuple[Records, Records]  # a training's epochs, and its log


class Picture(NamedTuple):
    """A figure, what it shows, and the same for who cannot see it."""

    title: str
    figure: Figure
    caption: str
    alt: str


def run_pictures(results: Results, records: Records) -> list[Picture]:
    """The pictures of one run, without those that there is nothing to draw for."""
    parts = {"step": results["parts_ms"]}
    return _drawn(
        (
            "By epoch",
            draw_curves(run_curves(results), results["teacher"]),
            "Training: over the images as they were trained on, with whatever augmentation.",
            "Accuracy, cross entropy, feature norm and cosine by epoch; the accuracy ends at "
            f"{percent(results['test']['accuracy'])} %",
        ),
        (
            "Training losses",
            draw_losses({"student": (results["epochs"], records)}, LOSSES),
            "Pale: the logged steps; strong: the means of the epochs. The parts are unweighted.",
            "The training loss and its parts by step",
        ),
        ("Time of a step", draw_parts(parts), _ABOUT_PARTS, _in_words(parts)),
    )


def comparison_pictures(results: Results) -> list[Picture]:
    """The pictures of a comparison, without those that there is nothing to draw for."""
    by_method = {
        method: _median_parts([run["parts_ms"] for run in runs])
        for method, runs in results["runs"].items()
    }
    step_ms = results["step_ms"] or {}
    return _drawn(
        (
            "By epoch, on the test set",
            draw_curves(comparison_curves(results), results["teacher"]),
            "Means over the seeds; the bands are one standard deviation.",
            "Accuracy, cross entropy, feature norm and cosine of each method by epoch",
        ),
        (
            "What the ND loss adds to the accuracy",
            draw_pairs(results["pairs"]),
            "Above: each pair of students from one seed; below: their mean with its interval of "
            "95 % by Student's t.",
            "Paired differences of accuracy: " + "; ".join(map(_describe_pair, results["pairs"])),
        ),
        (
            "Time of a step by backend",
            draw_step_times(step_ms),
            "Medians, measured side by side after the training.",
            _in_words(step_ms),
        ),
        ("Time of a step by part", draw_parts(by_method), _ABOUT_PARTS, _in_words(by_method)),
    )


def detection_pictures(logs: dict[str, Records], methods: Collection[str]) -> list[Picture]:
    """The pictures of a detector's students, without those that there is nothing to draw for."""
    epochs = {
        name: [record for record in log if record["event"] == "epoch"] for name, log in logs.items()
    }
    students = {name: (epochs[name], logs[name]) for name in methods}
    names = dict.fromkeys(name for told in students.values() for name in _loss_lines(*told))
    titles = {name: LOSSES.get(name, name) for name in ("loss", *names)}
    parts = {name: found[-1]["parts_ms"] for name, found in epochs.items() if found}
    return _drawn(
        (
            "Training losses",
            draw_losses(students, titles),
            "Pale: the logged steps; strong: the means of the epochs. The parts are weighted.",
            "The training loss of each method and its parts by step",
        ),
        (
            "Time of a step by part",
            draw_parts(parts),
            f"{_ABOUT_PARTS} The teacher's pass over a student's proposals is in it too.",
            _in_words(parts),
        ),
    )


def draw_losses(trainings: dict[str, Told], titles: dict[str, str]) -> Figure | None:
    """A panel for each part of the loss by step of the optimiser.

    Args:
        trainings: by label, epochs and log; a colour for each, named where there are several.
        titles: of the parts to draw, by name; those that no training has are left out.
    """
    lines = {label: _loss_lines(*told) for label, told in trainings.items()}
    drawn = [name for name in titles if any(name in found for found in lines.values())]
    if not drawn:
        return None
    rows, columns = -(-len(drawn) // _MOST_COLUMNS), min(len(drawn), _MOST_COLUMNS)
    styles = line_styles(lines)
    with style():
        figure = Figure(figsize=(10, 2.9 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
        for panel, name in zip(panels.flat, drawn, strict=False):
            present = {label: found[name] for label, found in lines.items() if name in found}
            for label, (pale, strong) in present.items():
                colour, dashes = styles[label]
                panel.plot(*pale, color=colour, alpha=0.5, lw=1.0)
                panel.plot(*strong, color=colour, ls=dashes, marker=".", lw=1.8, label=label)
            values = [line[1] for pair in present.values() for line in pair if line.size]
            panel.set_ylim(late_range([found[None] for found in values]))
            panel.set_title(titles[name])
            panel.set_xlabel("step")
            panel.locator_params(axis="x", nbins=4)
        for panel in panels.flat[len(drawn) :]:
            panel.set_visible(False)
        if len(lines) > 1:
            own = [Line2D([], [], color=styles[label][0], ls=styles[label][1]) for label in lines]
            figure.legend(own, list(lines), loc="outside lower center", ncols=7)
    return figure


def _loss_lines(epochs: Records, records: Records) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By part of the loss its line of logged steps and its line of epochs, each [2, n]."""
    steps = [record for record in records if record["event"] == "step"]
    steps = steps[:: -(-len(steps) // MOST_POINTS) or 1]
    of_steps = [(row["step"], row["losses"] | {"loss": row["loss"]}) for row in steps]
    of_epochs = [(row["step"], row["train"]) for row in epochs]
    names = dict.fromkeys(name for _, found in (*of_steps, *of_epochs) for name in found)
    return {name: (_line(of_steps, name), _line(of_epochs, name)) for name in names}


def _line(points: list[tuple[int, dict[str, Any]]], name: str) -> np.ndarray:
    pairs = [(step, found.get(name)) for step, found in points]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2).T


def draw_parts(parts_ms: dict[str, dict[str, float]]) -> Figure | None:
    """A stacked bar for each label; the ND loss is taken out of the forward pass it is part of."""
    bars = {
        label: parts | {"forward": max(parts["forward"] - parts.get("nd", 0.0), 0.0)}
        for label, parts in parts_ms.items()
        if "forward" in parts
    }
    if not bars:
        return None
    names = [name for name in PARTS if any(name in parts for parts in bars.values())]
    with style():
        figure = Figure(figsize=(10, 1.1 + 0.38 * len(bars)), layout="constrained")
        panel = figure.subplots()
        left = np.zeros(len(bars))
        for colour, name in zip(COLOURS, names, strict=False):
            widths = np.array([parts.get(name, 0.0) for parts in bars.values()])
            panel.barh(list(bars), widths, 0.62, left=left, color=colour, label=name)
            left += widths
        _finish_bars(figure, panel)
    return figure


def draw_step_times(step_ms: dict[str, dict[str, float]]) -> Figure | None:
    """For each method a bar for each backend."""
    backends = list(dict.fromkeys(name for times in step_ms.values() for name in times))
    if not backends:
        return None
    rows = [(method, name) for method, times in step_ms.items() for name in times]
    with style():
        figure = Figure(figsize=(10, 1.1 + 0.3 * len(rows)), layout="constrained")
        panel = figure.subplots()
        for colour, backend in zip(COLOURS, backends, strict=False):
            places = [place for place, (_, name) in enumerate(rows) if name == backend]
            times = [step_ms[rows[place][0]][backend] for place in places]
            bars = panel.barh(places, times, 0.7, color=colour, label=backend)
            panel.bar_label(bars, fmt="%.2f", padding=3, fontsize=8.5)
        panel.set_yticks(range(len(rows)), [method for method, _ in rows])
        _finish_bars(figure, panel)
    return figure


def draw_pairs(pairs: list[dict[str, Any]]) -> Figure | None:
    """A row for each pair of methods: the seeds' differences, their mean and its interval."""
    if not pairs:
        return None
    with style():
        figure = Figure(figsize=(10, 1.0 + 0.5 * len(pairs)), layout="constrained")
        panel = figure.subplots()
        panel.axvline(0, color=INK, lw=1.2, zorder=0.9)  # over the grid, under the dots
        for place, pair in enumerate(pairs):
            points = 100 * np.array(pair["differences"])
            above = np.full(len(points), place - 0.25)
            panel.scatter(points, above, s=36, color=COLOURS[0], alpha=0.5, lw=0)
            if pair["interval"] is not None:
                low, high = (100 * end for end in pair["interval"])
                panel.hlines(place, low, high, color=COLOURS[0], lw=3)
            panel.plot(100 * pair["mean"], place, "D", color=COLOURS[0], ms=8, mec=INK)
        panel.set_yticks(range(len(pairs)), [f"{pair['plus']} − {pair['base']}" for pair in pairs])
        panel.set_ylim(len(pairs) - 0.5, -0.6)
        panel.set_xlabel("difference of accuracy, percentage points")
    return figure


def _finish_bars(figure: Figure, panel: Axes) -> None:
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    panel.set_xlabel("ms")
    figure.legend(loc="outside upper left", ncols=len(COLOURS))


def _median_parts(of_seeds: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(parts[name] for parts in of_seeds) for name in of_seeds[0]}


def _in_words(times_ms: dict[str, dict[str, float]]) -> str:
    return "Time of a step in ms. " + "; ".join(
        f"{label}: " + ", ".join(f"{name} {time:.2f}" for name, time in times.items())
        for label, times in times_ms.items()
    )


def _describe_pair(pair: dict[str, Any]) -> str:
    return f"{pair['plus']} minus {pair['base']} {100 * pair['mean']:+.2f} points"


def _drawn(*pictures: tuple[str, Figure | None, str, str]) -> list[Picture]:
    return [
        Picture(title, figure, caption, alt)
        for title, figure, caption, alt in pictures
        if figure is not None
    ]
