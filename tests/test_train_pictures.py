"""The pictures of runs and comparisons: what is drawn is what was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra [train]")
pytest.importorskip("rich", reason="needs the extra [train]")

from made_up_results import (
    LOSSES,
    comparison_results,
    detection_logs,
    run_records,
    run_results,
)
from matplotlib.image import imread

from ndfast.train.report import plot_comparison
from ndfast.train.report.drawing import late_range, line_styles, to_svg
from ndfast.train.report.pictures import LOSSES as TITLES
from ndfast.train.report.pictures import (
    MOST_POINTS,
    comparison_pictures,
    detection_pictures,
    draw_losses,
    draw_pairs,
    draw_parts,
    draw_step_times,
    run_pictures,
)

pytestmark = pytest.mark.usefixtures("seed")


def test_the_curves_are_those_of_the_results() -> None:
    results = comparison_results()
    (curves, *_) = comparison_pictures(results)
    titles = [panel.get_title(loc="left") for panel in curves.figure.axes]
    assert len(titles) == 4
    assert titles[0] == "accuracy"
    for panel, name in zip(
        curves.figure.axes, ("accuracy", "cross_entropy", "norm_ratio", "cosine"), strict=True
    ):
        lines = {line.get_label(): line for line in panel.get_lines()}
        assert list(lines) == ["ce", "kd", "kd++", "teacher"]
        for band, (method, runs) in zip(panel.collections, results["runs"].items(), strict=True):
            of_seeds = np.array([[epoch["test"][name] for epoch in run["epochs"]] for run in runs])
            mean, std = of_seeds.mean(axis=0), of_seeds.std(axis=0, ddof=1)
            np.testing.assert_allclose(
                lines[method].get_xydata(), np.stack([np.arange(1, 5), mean], axis=1)
            )
            (path,) = band.get_paths()
            assert path.vertices[:, 1].max() == pytest.approx((mean + std).max())
            assert path.vertices[:, 1].min() == pytest.approx((mean - std).min())
        teacher = 1.0 if name == "norm_ratio" else results["teacher"][name]
        assert set(lines["teacher"].get_ydata()) == {teacher}


def test_a_runs_curves_are_test_training_and_average() -> None:
    results = run_results()
    del results["epochs"][1]["test"]["cosine"]
    (curves, *_) = run_pictures(results, [])
    accuracy, cross_entropy, _, cosine = curves.figure.axes
    lines = {line.get_label(): line.get_ydata() for line in accuracy.get_lines()}
    assert list(lines) == ["test", "training", "test, averaged weights", "teacher"]
    for label, part in (("test", "test"), ("training", "train"), ("test, averaged weights", "ema")):
        assert list(lines[label]) == [epoch[part]["accuracy"] for epoch in results["epochs"]]
    lines = {line.get_label(): line.get_ydata() for line in cross_entropy.get_lines()}
    assert list(lines["training"]) == [epoch["train"]["ce"] for epoch in results["epochs"]]
    lines = {line.get_label(): line.get_ydata() for line in cosine.get_lines()}
    assert list(np.isnan(lines["test"])) == [False, True, False, False]
    assert "training" not in lines


def test_without_a_teacher_there_are_two_panels() -> None:
    results = run_results(teacher=None, ema=None)
    for epoch in results["epochs"]:
        epoch["test"] = {
            name: epoch["test"][name] for name in ("accuracy", "cross_entropy", "norm")
        }
    (curves, *_) = run_pictures(results, [])
    assert len(curves.figure.axes) == 2
    labels = [line.get_label() for line in curves.figure.axes[0].get_lines()]
    assert labels == ["test", "training"]


def test_the_losses_are_those_of_log_and_epochs() -> None:
    epochs, records = run_results()["epochs"], run_records()
    records[5]["loss"] = None  # a skipped batch
    figure = draw_losses({"": (epochs, [{"event": "start", "step": 0}, *records])}, TITLES)
    assert figure is not None
    for panel, name in zip(figure.axes, ("loss", *LOSSES), strict=True):
        steps, means = (line.get_xydata() for line in panel.get_lines())
        expected = [
            record["loss"] if name == "loss" else record["losses"][name] for record in records
        ]
        np.testing.assert_array_equal(steps[:, 0], range(1, 41))
        np.testing.assert_array_equal(steps[:, 1], np.array(expected, dtype=float))
        assert means.tolist() == [[epoch["step"], epoch["train"][name]] for epoch in epochs]
    many = draw_losses({"": ([], run_records(steps=2 * MOST_POINTS + 1))}, TITLES)
    assert many is not None
    assert len(many.axes[0].get_lines()[0].get_xdata()) == 667  # every third


def test_a_detectors_losses_by_method() -> None:
    logs = detection_logs()
    losses, times = (picture.figure for picture in detection_pictures(logs, ["ce", "kd", "kd++"]))
    panels = {panel.get_title(loc="left"): panel for panel in losses.axes if panel.get_visible()}
    names = ("loss", "objectness", "proposals", "classification", "regression", "kd", "nd")
    assert list(panels) == [TITLES.get(name, name) for name in names]
    for name, panel in zip(names, panels.values(), strict=True):
        methods = {"kd": ["kd", "kd++"], "nd": ["kd++"]}.get(name, ["ce", "kd", "kd++"])
        lines = [line.get_xydata() for line in panel.get_lines()]
        for method, pale, strong in zip(methods, lines[::2], lines[1::2], strict=True):
            steps = [record for record in logs[method] if record["event"] == "step"]
            of_steps = [(row["losses"] | {"loss": row["loss"]})[name] for row in steps]
            assert pale[:, 1].tolist() == of_steps
            assert strong.tolist() == [
                [row["step"], row["train"][name]] for row in logs[method] if "train" in row
            ]
    assert [text.get_text() for text in losses.legends[0].get_texts()] == ["ce", "kd", "kd++"]
    (panel,) = times.axes
    assert [text.get_text() for text in panel.get_yticklabels()] == ["teacher", "ce", "kd", "kd++"]


def test_a_step_is_the_sum_of_its_parts() -> None:
    parts = run_results()["parts_ms"]
    figure = draw_parts({"step": parts})
    assert figure is not None
    bars = {bar.get_label(): bar[0] for bar in figure.axes[0].containers}
    assert list(bars) == ["data", "teacher", "forward", "nd", "backward", "optimizer"]
    widths = {name: bar.get_width() for name, bar in bars.items()}
    assert widths == pytest.approx(parts | {"forward": parts["forward"] - parts["nd"]})
    left = 0.0
    for bar in bars.values():
        assert bar.get_x() == pytest.approx(left)
        left += bar.get_width()


def test_the_parts_of_a_method_are_medians_over_its_seeds() -> None:
    results = comparison_results()
    *_, parts = comparison_pictures(results)
    (backward,) = [
        bars for bars in parts.figure.axes[0].containers if bars.get_label() == "backward"
    ]
    expected = [
        np.median([run["parts_ms"]["backward"] for run in runs])
        for runs in results["runs"].values()
    ]
    assert [bar.get_width() for bar in backward] == pytest.approx(expected)


def test_the_pairs_are_dots_beside_zero() -> None:
    pairs = comparison_results()["pairs"]
    figure = draw_pairs(pairs)
    assert figure is not None
    zero, mean = figure.axes[0].get_lines()
    dots, interval = figure.axes[0].collections
    assert list(zero.get_xdata()) == [0, 0]
    assert mean.get_xdata() == pytest.approx([100 * pairs[0]["mean"]])
    np.testing.assert_allclose(dots.get_offsets()[:, 0], 100 * np.array(pairs[0]["differences"]))
    ((start, end),) = interval.get_segments()
    assert [start[0], end[0]] == pytest.approx([100 * value for value in pairs[0]["interval"]])
    assert draw_pairs([]) is None


def test_a_bar_is_a_methods_time_by_a_backend() -> None:
    times = comparison_results()["step_ms"]
    figure = draw_step_times(times)
    assert figure is not None
    (panel,) = figure.axes
    methods = [label.get_text() for label in panel.get_yticklabels()]
    found = {
        (methods[round(bar.get_y() + bar.get_height() / 2)], bars.get_label()): bar.get_width()
        for bars in panel.containers
        for bar in bars
    }
    assert found == {
        (method, backend): time
        for method, of_method in times.items()
        for backend, time in of_method.items()
    }


def test_a_method_and_its_plus_share_a_colour() -> None:
    methods = [name + plus for name in ("kd", "dkd", "dist", "reviewkd") for plus in ("", "++")]
    styles = line_styles(["ce", *methods])
    assert styles["kd"][0] == styles["kd++"][0]
    assert (styles["kd"][1], styles["kd++"][1], styles["ce"][1]) == (":", "-", "-")
    assert len(set(styles.values())) == 9


def test_the_range_leaves_the_plunge_out() -> None:
    curve = np.array([[9.0, 2.0, 1.0, 1.5, np.nan, 2.0, 2.0, 2.0, 2.0, 2.0]])
    assert late_range([curve]) == pytest.approx((1.0 - 0.08, 2.0 + 0.08))
    assert late_range([np.full((1, 3), np.nan)]) == (0.0, 1.0)


def test_the_picture_of_a_comparison_is_not_blank(tmp_path: Path) -> None:
    plot_comparison(comparison_results(), tmp_path / "curves.png")
    assert imread(tmp_path / "curves.png")[..., :3].std() > 0.05


def test_the_same_results_give_the_same_picture() -> None:
    pair = comparison_results()["pairs"]
    first, second = (draw_pairs(pair) for _ in range(2))
    assert first is not None
    assert second is not None
    assert to_svg(first) == to_svg(second)
