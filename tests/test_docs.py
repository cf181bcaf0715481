"""The documentation: its code runs, its commands parse, its site builds, no link is dead."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from html.parser import HTMLParser
from itertools import dropwhile
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
import torch

pytest.importorskip("mkdocs", reason="the documentation needs requirements-dev.txt")
pytest.importorskip("sybil", reason="the documentation needs requirements-dev.txt")
pytest.importorskip("torchvision_ops", reason="needs torchvision")  # before a page imports timm

from sybil import Document, Example, Region
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from ndfast import cli
from ndfast.train import commands

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
# What a how-to page needs, where it is not the package that the page is named after.
NEEDS = {"index": "ndfast", "kdpp": "ndfast", "mdistiller": "ndfast", "mmrazor": "mmengine"}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
INDENTED = re.compile(r"^ {4}((?:ndfast|torchrun|accelerate|make|pip) .+)$", flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.parent.name == "how-to":
        package = NEEDS.get(page.stem, page.stem)
        pytest.importorskip(package, reason=f"{page.name} needs {package}")
    monkeypatch.chdir(tmp_path)
    parsers = [PythonCodeBlockParser(), SkipParser(), CodeBlockParser("sh", _check_commands)]
    if page == README:
        parsers.append(_indented_commands)
    document = Document.parse(str(page), *parsers)
    if page == README:
        document.namespace.update(_names_of_the_readme(monkeypatch))
    for example in document.examples():
        example.evaluate()


def _names_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the README's pieces of a trainer take from the trainer around them."""
    K, D = 100, 64
    class_means = torch.randn(K, D)
    T_EMB = {str(k): mean.tolist() for k, mean in enumerate(class_means)}
    Path("teacher.json").write_text(json.dumps(T_EMB), encoding="utf-8")
    authors_utils = SimpleNamespace(AverageMeter=0, KDLoss=0, Save_Checkpoint=0, colorstr=0)
    monkeypatch.setitem(sys.modules, "utils", authors_utils)
    features = torch.randn(K, D, requires_grad=True)
    return {
        "F": torch.nn.functional,
        "args": SimpleNamespace(nd_loss_factor=2.0),
        "device": torch.device("cpu"),
        "T_EMB": T_EMB,
        "s_emb": features,
        "student_features": features,
        "features": features,
        "t_emb": torch.randn(K, D),
        "teacher_features": torch.randn(K, D),
        "labels": torch.arange(K),
        "ce": torch.zeros(()),
        "kd": torch.zeros(()),
        "classifier": torch.nn.Linear(D, K),
        "teacher": torch.nn.Identity(),
        "dataset": torch.utils.data.TensorDataset(torch.randn(K, D), torch.arange(K)),
        "rank": 0,
        "world_size": 1,
    }


def _indented_commands(document: Document) -> Iterator[Region]:
    for found in INDENTED.finditer(document.text):
        yield Region(found.start(1), found.end(1), parsed=found[1], evaluator=_check_commands)


def _check_commands(example: Example) -> None:
    for line in str(example.parsed).replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            _check_command(words)


def _check_command(words: list[str]) -> None:
    """Its flags parse and its files are there; one that is quick is run."""
    words = list(dropwhile(lambda word: "=" in word, words))  # NAME=VALUE make ...
    program, *arguments = words
    for script in (word for word in words if re.fullmatch(r"[\w/]+/\w+\.(py|yaml)", word)):
        assert (ROOT / script).exists(), f"{script} is not there"
    if "ndfast" in words:
        _check_ndfast(words[words.index("ndfast") + 1 :])
    elif program == "make":
        assert TARGETS.issuperset(word for word in arguments if "=" not in word)
    elif program.endswith("pytest"):
        given = {word.partition("=")[0] for word in arguments if word.startswith("-")}
        assert given <= _options_of_pytest()
        for path in (word for word in arguments if "/" in word):
            assert (ROOT / path).exists(), f"{path} is not there"
    else:
        assert program in ("pip", "python", "accelerate", "torchrun"), f"{program}: is not checked"


@cache
def _options_of_pytest() -> set[str]:
    """Those of the benchmark among them."""
    command = [sys.executable, "-m", "pytest", "bench/", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", done.stdout))


def _check_ndfast(arguments: list[str]) -> None:
    given = _parse(arguments)
    if given.name == "train":
        commands.read_config(given)
    elif given.name == "compare":
        for method in given.methods:
            commands.read_config(given, method)
    elif given.name == "env" or (given.name == "class-means" and _is_there(given.file)):
        assert cli.main(arguments) == cli.OK


def _is_there(file: Path | None) -> bool:
    """Whether a block of the page has written it."""
    return file is not None and file.exists()


def _parse(arguments: list[str]) -> argparse.Namespace:
    try:
        return cli._build_parser().parse_args(arguments)
    except SystemExit as left:
        raise AssertionError(f"ndfast {shlex.join(arguments)}: does not parse") from left


@pytest.mark.parametrize(
    "command",
    [
        "ndfast train --no-such-flag 1",
        "ndfast train --recipe no_such_recipe",
        "torchrun --nproc_per_node 8 -m ndfast train --method no_such_method",
        "python -m ndfast no-such-command",
        "make no-such-target",
        ".venv/bin/pytest tests/test_tree.py --no-such-flag",
        "no-such-program",
        "python examples/no_such_framework/train.py",
    ],
)
def test_a_command_that_is_wrong_is_found(command: str) -> None:
    with pytest.raises((AssertionError, commands.ConfigError)):
        _check_command(shlex.split(command))


class Links(HTMLParser):
    """The links, the anchors and what a browser fetches by itself of one page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value is not None:
                (self.links if tag == "a" else self.fetched).append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {file: Links(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}


def test_every_page_is_in_the_site(pages: dict[Path, Links]) -> None:
    assert len(pages) == len(PAGES)  # the README is not, and 404.html is


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Links]) -> None:
    dead = []
    for page, found in pages.items():
        for link in [*found.links, *found.fetched]:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            path = unquote(url.path)
            target = site / path.lstrip("/") if path.startswith("/") else page.parent / path
            target = (page if not path else target).resolve()
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(url.fragment)
            if not target.exists() or (anchor and anchor not in pages[target].anchors):
                dead.append((page.relative_to(site).as_posix(), link))
    assert dead == []


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_every_link_of_a_page_beside_the_site_leads_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        url = urlsplit(link)
        if not url.scheme:
            target = ROOT / (url.path or page)
            assert target.exists(), link
            assert not url.fragment or url.fragment in _anchors(target), link


def _anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and mkdocs make them of plain words."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Links]) -> None:
    def elsewhere(links: Iterable[str]) -> list[str]:
        return [link for link in links if link.startswith(("http:", "https:", "//"))]

    assert elsewhere(link for found in pages.values() for link in found.fetched) == []
    for style in site.rglob("*.css"):
        assert elsewhere(re.findall(r"url\(['\"]?([^)]+)", style.read_text(encoding="utf-8"))) == []


def test_formulas_are_mathml_without_a_trace_of_tex(pages: dict[Path, Links]) -> None:
    formulas = 0
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert 'class="arithmatex"' not in html, page
        for formula in re.findall(r"<math.*?</math>", html, flags=re.DOTALL):
            assert "\\" not in formula, (page, formula)
            formulas += 1
    assert formulas > 30


def test_what_is_no_markup_is_not_taken_for_it(pages: dict[Path, Links]) -> None:
    """A formula such as <s, c> is a tag to a browser, which shows nothing; and TeX is no text."""
    for page, found in pages.items():
        assert [tag for tag in found.tags if not re.fullmatch(r"[a-z][a-z0-9-]*", tag)] == [], page
        shown = re.sub(
            r"<(math|code|script)\b.*?</\1>", "", page.read_text("utf-8"), flags=re.DOTALL
        )
        assert re.findall(r".*(?:math::|\\(?:frac|sum|math)).*", shown) == [], page


def test_no_module_is_shown_for_its_function(site: Path) -> None:
    """A function by the name of its file: `ndfast.losses.cross_entropy`."""
    html = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert "doc-function" in html
    assert "doc-module" not in html


def test_a_flag_is_not_broken_at_its_hyphens(site: Path) -> None:
    html = (site / "training" / "index.html").read_text(encoding="utf-8")
    assert "<code><span class=flag>--data-dir</span> DIR</code>" in html
    assert re.findall(r"<code>[^<]*(?<!\S)--\w[^<]*</code>", html) == []
