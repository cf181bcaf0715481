"""The tables and pages of runs and comparisons, of made-up results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra [train]")
pytest.importorskip("rich", reason="needs the extra [train]")

from made_up_results import (
    METRICS,
    comparison_results,
    run_records,
    run_results,
)
from shown import Page, in_terminal, not_held, of_a_step

from ndfast.train.report import (
    build_comparison_table,
    build_run_table,
    plot_comparison,
    write_comparison_page,
    write_run_page,
)
from ndfast.train.report.tables import comparison_grids, run_grids

HOSTILE = "<script>alert('1')</script> \"$\\frac{[bold]&"

pytestmark = pytest.mark.usefixtures("seed")


def test_the_time_of_a_step_by_hand() -> None:
    parts = {"nd": 0.5, "data": 1.0, "forward": 10.0, "backward": 20.0, "optimizer": 4.0}
    _, step, _ = run_grids(run_results(parts_ms={**parts, "teacher": 15.0}))
    assert step.head == ("", "data", "teacher", "forward", "nd", "backward", "optimizer", "step")
    assert step.rows == [
        ("ms", "1.00", "15.00", "10.00", "0.50", "20.00", "4.00", "50.00"),
        ("% of the step", "2.00", "30.00", "20.00", "1.00", "40.00", "8.00", "100.00"),
    ]
    assert "by the backend native" in step.caption
    of_step = {"forward": 3.0, "backward": 1.0}
    _, step = run_grids(run_results(parts_ms=of_step, backend=None, loss_check=None))
    assert step.rows[1] == ("% of the step", "75.00", "25.00", "100.00")
    assert "nd" not in step.caption.split()


def test_a_runs_table_shows_what_is_in_its_results() -> None:
    results = run_results()
    shown = " ".join(in_terminal(build_run_table(results)).split())
    for line in ("kd++ on digits", "resnet20 (278,324 parameters)", "40 steps, 2 skipped"):
        assert line in shown
    formats = ("{:.2%}", "{:.4f}", "{:.2f}", "{:.2f}", "{:.3f}")
    for name, of in (("student", "test"), ("averaged", "ema")):
        cells = [
            form.format(results[of][metric]) for form, metric in zip(formats, METRICS, strict=True)
        ]
        assert " ".join([name, *cells]).replace("%", "") in shown
    hash_shown = results["sha256"][:16]
    assert hash_shown in shown
    assert not_held(shown.replace("SHA-256", ""), results | of_a_step(results)) == []


def test_a_comparisons_tables_are_made_of_its_results() -> None:
    results = comparison_results()
    methods, pairs, checks = comparison_grids(results)
    rows = {row[0]: row[1:] for row in methods.rows}
    for method, runs in results["runs"].items():
        found = {name: np.array([run["test"][name] for run in runs]) for name in METRICS}
        accuracy = 100 * found["accuracy"]
        assert rows[method][:4] == (
            f"{accuracy.mean():.2f} ± {accuracy.std(ddof=1):.2f}",
            f"{found['norm'].mean():.2f}",
            f"{found['norm_ratio'].mean():.2f}",
            f"{found['cosine'].mean():.3f}",
        )
    times = results["step_ms"]
    assert methods.head[5:] == ("step, ms\nno ND", "step, ms\nnative", "step, ms\nreference")
    assert rows["kd"][4:] == (f"{times['kd']['no ND']:.2f}", "", "")
    assert rows["kd++"][4:] == ("", *(f"{time:.2f}" for time in times["kd++"].values()))
    ((name, mean, interval, p, step),) = pairs.rows
    (pair,) = results["pairs"]
    low, high = pair["interval"]
    assert (name, mean) == ("kd++ − kd", f"{100 * pair['mean']:+.2f}")
    assert interval == f"{100 * low:+.2f} to {100 * high:+.2f}"
    assert p == f"{pair['p_value']:.4f}"
    native, reference = (100 * (time / times["kd"]["no ND"] - 1) for time in times["kd++"].values())
    assert step == f"native {native:+.1f} %, reference {reference:+.1f} %"
    assert checks.rows == [
        ("kd++", "native", "1,240", "1.5e-08", "2.5e-07", "0", "1.0e-05", "agree")
    ]


def test_a_comparison_without_step_times_has_no_columns_for_them() -> None:
    results = comparison_results()
    results["step_ms"] = None
    methods, pairs, _ = comparison_grids(results)
    assert [len(methods.head), len(pairs.head)] == [5, 4]
    assert {len(row) for row in methods.rows} == {5}
    assert {len(row) for row in pairs.rows} == {4}
    assert "Step" not in methods.caption + pairs.caption


def test_results_of_before_the_check_are_shown(tmp_path: Path) -> None:
    results = comparison_results()
    del results["loss_checks"]
    results["trajectories"] = {"kd++": {"agrees": True}}
    for run in results["runs"]["kd++"]:
        del run["loss_check"]
    assert "reference" not in [grid.title for grid in comparison_grids(results)]
    write_comparison_page(tmp_path / "page.html", results)
    run = run_results()
    del run["loss_check"]
    write_run_page(tmp_path / "run.html", run, [])
    assert len(run_grids(run)) == 2


def test_one_seed_has_no_deviation_and_no_interval() -> None:
    results = comparison_results(seeds=1)
    shown = in_terminal(build_comparison_table(results))
    accuracy = results["runs"]["kd"][0]["test"]["accuracy"]
    assert f"{100 * accuracy:.2f} ± –" in shown
    assert "1 seed ±" in " ".join(shown.split())
    assert "1 pair;" in shown


def test_a_disagreement_is_seen() -> None:
    results, run = comparison_results(), run_results()
    found = {"step": 7, "quantity": "gradient", "difference": 0.0123, "tolerance": 1e-5}
    results["loss_checks"]["kd++"] |= {"agrees": False, "refused": found | {"seed": 2}}
    shown = " ".join(in_terminal(build_comparison_table(results)).split())
    assert "DISAGREE" in shown
    assert "of kd++ with seed 2, at step 7, the gradient of the features is off by 1.2e-02" in shown
    # Of a gradient that never came.
    run["loss_check"] |= {"agrees": False, "refused": found | {"difference": None}}
    run["loss_check"]["differences"]["gradient"] = None
    shown = " ".join(in_terminal(build_run_table(run)).split())
    assert "not finite" in shown
    assert "at step 7, the gradient of the features is off by what is not finite" in shown


def test_the_tables_fit_a_terminal() -> None:
    results = comparison_results()
    results["runs"]["reviewkd++"] = results["runs"].pop("kd++")
    results["step_ms"]["reviewkd++"] = results["step_ms"]["kd++"]
    results["loss_checks"]["reviewkd++"] = results["loss_checks"].pop("kd++")
    results["loss_checks"]["reviewkd++"]["tolerances"]["gradient"] = 2.3e-3
    shown = in_terminal(build_comparison_table(results), width=80)
    assert "…" not in shown
    assert "reviewkd++" in shown


def test_a_runs_page_shows_what_its_table_shows(tmp_path: Path) -> None:
    results = run_results()
    write_run_page(tmp_path / "run.html", results, run_records())
    page = Page(tmp_path / "run.html")
    shown = page.text.replace("SHA-256", "").replace("2.13.0", "")
    assert not_held(shown, results | of_a_step(results)) == []
    for figure in (
        f"{100 * results['test']['accuracy']:.2f} %",
        f"{results['test']['cosine']:.3f}",
    ):
        assert figure in shown
    for milestone in ("milestones", "1, 2", "torch"):
        assert milestone in page.text


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    results = comparison_results()
    for described in (results["data"], results["student"], results["config"]):
        described["name"] = HOSTILE
    write_comparison_page(tmp_path / "page.html", results)
    page = Page(tmp_path / "page.html")
    assert page.find("script") == []
    assert HOSTILE in page.text
    assert HOSTILE in in_terminal(build_comparison_table(results), width=200)
    plot_comparison(results, tmp_path / "curves.png")
    run = run_results(data=results["data"], student=results["student"])
    write_run_page(tmp_path / "page.html", run, [])
    assert Page(tmp_path / "page.html").find("script") == []
    assert HOSTILE in in_terminal(build_run_table(run), width=200)


def test_a_run_that_ended_early_has_a_page(tmp_path: Path) -> None:
    few = {"accuracy": 0.125, "cross_entropy": None, "norm": 2.0}
    changed = {"teacher": None, "ema": None, "epochs": [], "parts_ms": {}, "images_per_s": None}
    results = run_results(test=few, backend=None, **changed)
    write_run_page(tmp_path / "run.html", results, [])
    page = Page(tmp_path / "run.html")
    assert page.pictures() == []
    assert "12.50 %" in page.text
    assert "–" in in_terminal(build_run_table(results))
