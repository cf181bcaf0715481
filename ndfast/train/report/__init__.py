"""What was found, to look at: tables in the terminal, one HTML page, one picture.

``results`` are everywhere what `results.json` holds: of `ndfast.train.runs.run.run`, of
`ndfast.train.compare.comparison.compare`, of `ndfast.train.detection.run.run`; ``records`` and
``logs`` what `ndfast.train.runs.records.read_log` gives, the latter by the training's name. What
writes a file raises OSError where it cannot.

- `grid`: a table, which terminal and page share; `tables`: what is in them
- `drawing`: the pictures' style, and curves
- `pictures`: the pictures of a page
- `pages`, `page.html`: the page
"""

from ndfast.train.report.drawing import plot_comparison
from ndfast.train.report.pages import (
    write_comparison_page,
    write_detection_page,
    write_run_page,
)
from ndfast.train.report.tables import (
    build_comparison_table,
    build_detection_table,
    build_run_table,
)

__all__ = [
    "build_comparison_table",
    "build_detection_table",
    "build_run_table",
    "plot_comparison",
    "write_comparison_page",
    "write_detection_page",
    "write_run_page",
]
