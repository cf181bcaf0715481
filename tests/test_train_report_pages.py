"""The pages of runs, comparisons and detectors as a browser has them, with their pictures."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the extra [train]")
pytest.importorskip("rich", reason="needs the extra [train]")

from made_up_results import (
    comparison_results,
    detection_logs,
    detection_results,
    run_records,
    run_results,
)
from shown import Page, in_terminal

from ndfast.cli import main
from ndfast.train.report import (
    build_detection_table,
    write_comparison_page,
    write_detection_page,
    write_run_page,
)
from ndfast.train.report.drawing import INK

pytestmark = [pytest.mark.usefixtures("seed"), pytest.mark.pictures]


def run_page(path: Path) -> Page:
    write_run_page(path / "run.html", run_results(), run_records())
    return Page(path / "run.html")


def comparison_page(path: Path) -> Page:
    write_comparison_page(path / "comparison.html", comparison_results())
    return Page(path / "comparison.html")


def detection_page(path: Path) -> Page:
    write_detection_page(path / "detection.html", detection_results(), detection_logs())
    return Page(path / "detection.html")


@pytest.mark.parametrize("make", [run_page, comparison_page, detection_page])
def test_a_page_needs_nothing_else(make: Callable[[Path], Page], tmp_path: Path) -> None:
    page = make(tmp_path)
    assert page.source.startswith("<!DOCTYPE html>")
    for tag in ("script", "link", "iframe", "object"):
        assert page.find(tag) == []
    without_pictures = re.sub(r'src="data:[^"]*"', "", page.source)
    for reference in ("http", "url(", "@import", "src=", "href="):
        assert reference not in without_pictures
    assert "prefers-color-scheme: dark" in page.source
    for svg in page.pictures():
        tree = ElementTree.fromstring(svg)
        targets = [
            value
            for element in tree.iter()
            for name, value in element.attrib.items()
            if name.endswith("href")
        ]
        assert all(target.startswith("#") for target in targets)
        assert len(list(tree.iter("{http://www.w3.org/2000/svg}path"))) > 20
        assert "prefers-color-scheme:dark" in svg
        assert svg.count(INK) == 1  # where the light scheme is defined
    # It reads without its pictures.
    assert len(page.pictures()) >= 2
    assert all(len(attributes["alt"] or "") > 30 for attributes in page.find("img"))
    assert page.find("html") == [{"lang": "en"}]
    assert len(page.find("h1")) == 1
    scopes = [attributes.get("scope") for attributes in page.find("th")]
    assert scopes.count("row") == len(page.find("tr")) - len(page.find("thead"))
    assert "col" in scopes
    assert "device" in page.text
    assert "cuda: no" in page.text


def test_a_detectors_table_and_page_show_what_was_found(tmp_path: Path) -> None:
    results, logs = detection_results(), detection_logs()
    shown = " ".join(in_terminal(build_detection_table(results)).split())
    teacher = results["teacher"]
    for name, found in {"teacher": teacher, **results["students"]}.items():
        cells = [f"{100 * found[metric]:.2f}" for metric in ("map50", "map")]
        cells += [f"{found['norm']:.2f}", f"{found['norm'] / teacher['norm']:.2f}"]
        assert " ".join([name, *cells, f"{found['cosine']:.3f}"]) in shown
    assert "Steps skipped: kd 1,234." in shown
    results["skipped"]["kd"] = 0
    assert "skipped" not in in_terminal(build_detection_table(results))
    results["skipped"]["kd"] = 7
    write_detection_page(tmp_path / "page.html", results, logs)
    page = Page(tmp_path / "page.html")
    text = " ".join(page.text.split())
    assert "A detector by ce, kd, kd++ on coco 0123456789ab, seed 3" in text
    for name, log in logs.items():
        speed = sum(record["images_per_s"] for record in log[-2:]) / 2
        assert f"{name} 20 {results['skipped'][name]} {speed:.1f}" in text
    (losses, parts) = page.pictures()
    for title in ("ND", "sum, weighted", "regression", "objectness", "kd++"):
        assert f"<!-- {title} -->" in losses
    for title in ("teacher", "kd++", "backward"):
        assert f"<!-- {title} -->" in parts


def test_commands_draw_them(tmp_path: Path) -> None:
    compare = ["compare", "--methods", "kd", "--epochs", "1", "--seeds", "1"]
    compare += ["--teacher", "convnet4"]
    assert main([*compare, "--out", str(tmp_path)]) == 0
    for folder, pictures in ((tmp_path, 2), (tmp_path / "runs" / "kd-seed0", 3)):
        assert len(Page(folder / "report.html").pictures()) == pictures
