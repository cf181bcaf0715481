"""The roofline picture: achieved bandwidth against bytes moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

# Okabe and Ito's colours, which colour-blind readers tell apart; rooflines are grey.
COLOURS = {"cuda": "#0072B2", "triton": "#009E73", "compile": "#D55E00", "eager": "#CC79A7"}
LABELS = {
    "cuda": "ndfast, cuda",
    "triton": "ndfast, triton",
    "compile": "torch.compile, fastest mode",
    "eager": "eager",
}
ROOFLINES = {"add": (0, (5, 2)), "copy": (0, (1, 1.5)), "read": (0, (5, 2, 1, 2))}
MARKERS = {"fused": "o", "deferred": "s", "attached": "^"}
INK, GRID = "#444444", "#e8e8e8"

Point = tuple[float, float, str]  # bytes, GB/s, way


def draw(of_gpus: list[list[dict[str, Any]]], path: Path) -> None:
    """Writes the picture, a panel for each GPU's records; the suffix tells the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = roofline_figure(of_gpus)
    figure.savefig(path)


def roofline_figure(of_gpus: list[list[dict[str, Any]]]) -> Figure:
    """A panel for each GPU: rooflines as lines, ndfast and its peers as points."""
    figure = Figure(figsize=(8.5, 5.2 * len(of_gpus)), dpi=150, layout="constrained")
    panels = figure.subplots(len(of_gpus), squeeze=False)[:, 0]
    for panel, records in zip(panels, of_gpus, strict=True):
        _draw_panel(panel, records)
    handles = [Line2D([], [], color=INK, ls=ls, label=f"{name}, a roofline")
               for name, ls in ROOFLINES.items()]  # fmt: skip
    drawn = {name for records in of_gpus for name in series(records)}
    handles += [Line2D([], [], color=colour, lw=6, label=LABELS[name])
                for name, colour in COLOURS.items() if name in drawn]  # fmt: skip
    handles += [Line2D([], [], color=INK, ls="", marker=marker, label=f"way {way}")
                for way, marker in MARKERS.items()]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _draw_panel(panel: Axes, records: list[dict[str, Any]]) -> None:
    for name, dashes in ROOFLINES.items():
        best: dict[float, float] = {}
        for roofline in (r["others"][name] for r in records):
            best[roofline["bytes"]] = max(roofline["GB/s"], best.get(roofline["bytes"], 0))
        xy = zip(*sorted(best.items()), strict=True)
        panel.plot(*xy, color=INK, lw=1.2, ls=dashes, marker=".", ms=4, label=name)
    for name, points in series(records).items():
        for way, marker in MARKERS.items():
            of_way = [(x, y) for x, y, its_way in points if its_way == way]
            if of_way:
                xs, ys = zip(*of_way, strict=True)
                panel.scatter(xs, ys, s=30, marker=marker, alpha=0.9, color=COLOURS[name])
    panel.set_xscale("log")
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}"))
    panel.set_xlabel("bytes that have to move, MB")
    panel.set_ylabel("GB/s")
    panel.set_title(f"ND loss, forward and backward, on {records[0]['gpu']}", loc="left")
    panel.grid(color=GRID, lw=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def series(records: list[dict[str, Any]]) -> dict[str, list[Point]]:
    """The points of each backend, and of the peers: the bytes that have to move over their time."""
    found: dict[str, list[Point]] = {name: [] for name in COLOURS}
    seen = set()
    for r in records:
        found[r["backend"]].append((r["bytes"], r["GB/s"], r["way"]))
        if r["case"] in seen:  # the peers are the same beside each backend
            continue
        seen.add(r["case"])
        for name, step in (("compile", r["compile_mode"]), ("eager", "eager")):
            median_us = r["others"].get(step, {}).get("median_us")
            if median_us is not None:
                found[name].append((r["bytes"], 1e-3 * r["bytes"] / median_us, r["way"]))
    return {name: points for name, points in found.items() if points}
