"""The page of a run, a comparison or a detector: one HTML file that needs nothing else."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ndfast.files import write_whole
from ndfast.train.report.drawing import to_svg
from ndfast.train.report.grid import NONE, Grid, count, fixed, percent
from ndfast.train.report.pictures import (
    Picture,
    comparison_pictures,
    detection_pictures,
    run_pictures,
)
from ndfast.train.report.tables import (
    Results,
    comparison_grids,
    detection_grids,
    over_seeds,
    run_grids,
)

TEMPLATE = Path(__file__).with_name("page.html")

# A figure to be seen first: its label, itself, and what to hold it against.
Fact = tuple[str, str, str]


def write_run_page(path: Path, results: Results, records: list[dict[str, Any]]) -> None:
    """Writes the page of one run."""
    config, test, teacher = results["config"], results["test"], results["teacher"]
    beside = "on the test set" if teacher is None else f"teacher {percent(teacher['accuracy'])} %"
    facts = [("accuracy", f"{percent(test['accuracy'])} %", beside)]
    if "cosine" in test:
        facts += [
            ("‖s‖ / ‖t‖", fixed(test["norm_ratio"], 2), "means of the feature norms"),
            ("cosine", fixed(test["cosine"], 3), f"teacher {fixed(teacher['cosine'], 3)}"),
        ]
    facts.append(("steps", f"{results['steps']:,}", f"{results['skipped']:,} skipped"))
    title = f"{config['method']} on {results['data']['name']}, seed {config['seed']}"
    _write(path, title, facts, run_grids(results), run_pictures(results, records), results)


def write_comparison_page(path: Path, results: Results) -> None:
    """Writes the page of a comparison."""
    facts = []
    for pair in results["pairs"]:
        base, plus = (
            percent(over_seeds(results["runs"][pair[side]], "accuracy")[0])
            for side in ("base", "plus")
        )
        label = f"accuracy, {pair['plus']} − {pair['base']}"
        facts.append((label, f"{100 * pair['mean']:+.2f} points", f"{base} to {plus} %"))
    config = results["config"]
    methods, seeds = ", ".join(config["methods"]), count(config["seeds"], "seed")
    title = f"{methods} on {results['data']['name']}, {seeds}"
    _write(path, title, facts, comparison_grids(results), comparison_pictures(results), results)


def write_detection_page(
    path: Path, results: Results, logs: dict[str, list[dict[str, Any]]]
) -> None:
    """Writes the page of a detector's students."""
    students, teacher = results["students"], results["teacher"]
    beside = f"teacher {percent(teacher['map50'])} %"
    facts = [
        (f"mAP50, {method}", f"{percent(found['map50'])} %", beside)
        for method, found in students.items()
    ]
    seed = results["config"]["seed"]
    title = f"A detector by {', '.join(students)} on {results['data']['name']}, seed {seed}"
    pictures = detection_pictures(logs, students)
    _write(path, title, facts, detection_grids(results, logs), pictures, results)


def _write(
    path: Path,
    title: str,
    facts: list[Fact],
    grids: list[Grid],
    pictures: list[Picture],
    results: Results,
) -> None:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE.name).render(
        title=title,
        facts=facts,
        grids=grids,
        pictures=[
            (picture, b64encode(to_svg(picture.figure).encode()).decode()) for picture in pictures
        ],
        details={
            part: {name: _text(value) for name, value in results[part].items()}
            for part in ("config", "environment", "data")
        },
    )
    write_whole(path, page.encode())


def _text(value: Any) -> str:
    """A value as a line of text."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_text(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or NONE
    return NONE if value is None else str(value)
