"""A teacher's outputs on disk: what is damaged, of something else or cannot be is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from test_teacher_outputs import ROWS, VIEWS, K, begin, made, small_pieces, write_all
from torch import Tensor

from ndfast import TeacherOutputs, teacher_outputs_description
from ndfast.teacher_outputs_pieces import Piece

__all__ = ["made", "small_pieces"]  # fixtures


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows": 11}, "rows: got 11, but {} was made with 10"),
        ({"num_classes": 5}, "num_classes: got 5, but {} was made with 4"),
        ({"dtype": torch.float16}, "dtype: got float16, but {} was made with float32"),
        ({"teacher": "other"}, "teacher: expected 'other', but {} was made with 't'"),
        ({"data": (2, "d")}, "data: expected [2, 'd'], but {} was made with [1, 'd']"),
        ({"crop": 4}, "crop: expected 4, but {} does not say of which it is"),
    ],
)
def test_outputs_of_something_else_are_refused(
    given: dict[str, Any], message: str, made: tuple[TeacherOutputs, Tensor, Tensor]
) -> None:
    outputs, *_ = made
    before = {file.name: file.read_bytes() for file in outputs.path.iterdir()}
    expected = f"^{re.escape(message.format(outputs.path))}$"
    with pytest.raises(ValueError, match=expected):
        begin(outputs.path, **given)
    assert before == {file.name: file.read_bytes() for file in outputs.path.iterdir()}
    begin(outputs.path, data=(1, "d"))  # as JSON has it
    outputs.check(teacher="t")
    if not given.keys() & {"rows", "num_classes", "dtype"}:
        with pytest.raises(ValueError, match=expected):
            outputs.check(**given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"rows": 0}, ValueError, "rows: got 0; expected 1 or more"),
        ({"num_views": -1}, ValueError, "num_views: got -1; expected 1 or more"),
        ({"num_classes": 2.0}, TypeError, "num_classes: got float; expected an int"),
        ({"rows": True}, TypeError, "rows: got bool; expected an int"),
        (
            {"dtype": torch.bfloat16},
            ValueError,
            "dtype: got torch.bfloat16; expected torch.float32 or torch.float16",
        ),
        ({"teacher": {1, 2}}, TypeError, "metadata: Object of type set is not JSON serializable"),
    ],
)
def test_what_cannot_be_begun(
    given: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as raised:
        begin(tmp_path / "outputs", **given)
    assert str(raised.value).startswith(message)
    assert not (tmp_path / "outputs").exists()


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    needed = ROWS * VIEWS * (4 + 4 * K)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed - 1))
    with pytest.raises(OSError, match=r"the disk is too small: 0\.0 GB are still to be written"):
        begin(tmp_path)
    begin(tmp_path, dtype=torch.float16)  # that there is room for
    (tmp_path / "outputs.json").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed))
    outputs = begin(tmp_path)
    write_all(outputs, torch.zeros(VIEWS, ROWS, K), torch.zeros(VIEWS, ROWS))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0))
    begin(tmp_path)  # nothing is missing
    with pytest.raises(OSError, match=r"the disk is too small: 4\d{14}\.\d GB are still"):
        begin(tmp_path / "vast", rows=10**12, num_views=10**5, num_classes=10**6)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    outputs = begin(tmp_path, dtype=torch.float16)
    piece = outputs.pieces()[0]
    n = piece.stop - piece.start
    logits, norms = torch.zeros(n, K), torch.ones(n)

    def refused(piece: Any = piece, logits: Tensor = logits, norms: Tensor = norms) -> str:
        with pytest.raises((ValueError, IndexError)) as raised:
            outputs.write(piece, logits, norms)
        return str(raised.value)

    assert refused(Piece(0, 0, 1)) == (
        "piece: got (0, 0, 1); expected one of TeacherOutputs.pieces()"
    )
    assert refused(Piece(VIEWS, 0, n)) == f"views: got 3; {tmp_path} holds 0 to 2"
    assert refused(logits=logits[:, :1]) == f"logits: got shape [{n}, 1]; expected [{n}, {K}]"
    assert refused(norms=norms[:, None]) == f"norms: got shape [{n}, 1]; expected [{n}]"
    for bad in (torch.nan, torch.inf, 1e5, -1e5):
        assert refused(logits=torch.full((n, K), bad)).startswith("logits: got NaN, +Inf, or a")
    for bad in (torch.nan, torch.inf, -1.0):
        assert refused(norms=torch.full((n,), bad)).startswith("norms: got NaN, Inf or less than 0")
    assert [file.name for file in tmp_path.iterdir()] == ["outputs.json"]


def test_what_cannot_be_read(made: tuple[TeacherOutputs, Tensor, Tensor], tmp_path: Path) -> None:
    outputs, *_ = made
    for row in (-1, ROWS):
        with pytest.raises(IndexError, match=rf"rows: got {row}; .* holds 0 to 9"):
            outputs.read([0, row], [0, 0])
    for view in (-1, VIEWS):
        with pytest.raises(IndexError, match=rf"views: got {view}; .* holds 0 to 2"):
            outputs.read([0, 1], [0, view])
    with pytest.raises(ValueError, match=r"views: got 1 for 2 rows; expected one a row"):
        outputs.read([0, 1], [0])
    with pytest.raises(ValueError, match=r"rank: got 2; expected 0 to 1"):
        outputs.missing(2, 2)
    with pytest.raises(FileNotFoundError):
        TeacherOutputs(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.tensor([True, False]), TypeError, "got bool; expected integers"),
        ([1.0, 2.0], TypeError, "got float64; expected integers"),
        (["1", "2"], TypeError, "got <U1; expected integers"),
        ([[1], [2]], ValueError, "got shape [2, 1]; expected [n]"),
        (1, ValueError, "got shape []; expected [n]"),
    ],
)
def test_rows_and_views_are_integers(
    given: Any,
    error: type[Exception],
    message: str,
    made: tuple[TeacherOutputs, Tensor, Tensor],
) -> None:
    outputs, *_ = made
    for name, arguments in (("rows", (given, [0, 0])), ("views", ([0, 0], given))):
        with pytest.raises(error, match=f"^{re.escape(f'{name}: {message}')}"):
            outputs.read(*arguments)
    with pytest.raises(TypeError):
        outputs.missing(views=[0.5])  # type: ignore[list-item]


def test_pieces_that_nothing_describes_are_not_taken_over(
    made: tuple[TeacherOutputs, Tensor, Tensor],
) -> None:
    outputs, *_ = made
    (outputs.path / "outputs.json").unlink()
    with pytest.raises(ValueError, match=r"^path: got .* holds outputs without outputs\.json"):
        begin(outputs.path, teacher="other")
    assert not (outputs.path / "outputs.json").exists()


def test_makers_of_different_teachers_at_once(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither saw a description; the last one written holds."""
    first = begin(tmp_path)
    logits, norms = torch.randn(VIEWS, ROWS, K), torch.rand(VIEWS, ROWS)
    other = begin(tmp_path / "other", teacher="other")
    content = (other.path / "outputs.json").read_bytes()
    write = teacher_outputs_description.write_whole
    with monkeypatch.context() as patch:  # the other's comes just behind
        patch.setattr(
            teacher_outputs_description,
            "write_whole",
            lambda path, data: [write(path, each) for each in (data, content)],
        )
        with pytest.raises(
            ValueError, match=r"teacher: expected 't', but .* was made with 'other'"
        ):
            begin(tmp_path / "new")
    write(tmp_path / "outputs.json", content)
    with pytest.raises(ValueError, match=r"teacher: expected 't', but .* was made with 'other'"):
        write_all(first, logits, norms)
    assert not [*tmp_path.glob("view*")]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "other"])
def test_damage_is_recognised(damage: str, made: tuple[TeacherOutputs, Tensor, Tensor]) -> None:
    outputs, *_ = made
    path = next(outputs.path.glob("view00001-row000000004.*.npy"))
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
    elif damage == "other":
        content = bytearray(next(outputs.path.glob("view00001-row000000008.*")).read_bytes())
    else:
        content = {"cut": content[:-1], "empty": bytearray(), "longer": content + b"x"}[damage]
    path.write_bytes(content)
    opened = TeacherOutputs(outputs.path)
    named = rf"^{re.escape(str(path))}: is damaged \("
    with pytest.raises(ValueError, match=rf"{named}its SHA-256 does not fit\); remove it"):
        opened.verify()
    opened.verify([0, 2])
    if damage in ("cut", "empty", "other"):  # reading it would be out of bounds
        with pytest.raises(ValueError, match=named):
            opened.read([4], [1])
    path.unlink()
    assert opened.missing() == [Piece(1, 4, 8)]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'{"sha256": 1}', b"\xff", b"[" * 100_000, b"null"]
)
def test_a_broken_description(content: bytes, made: tuple[TeacherOutputs, Tensor, Tensor]) -> None:
    outputs, *_ = made
    (outputs.path / "outputs.json").write_bytes(content)
    for opening in (TeacherOutputs, begin):
        with pytest.raises(ValueError, match=r"outputs\.json: does not describe a teacher's out"):
            opening(outputs.path)


def test_a_changed_description(made: tuple[TeacherOutputs, Tensor, Tensor]) -> None:
    outputs, *_ = made
    path = outputs.path / "outputs.json"
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(content | {"rows": 9}))
    with pytest.raises(ValueError, match=r"outputs\.json: its SHA-256 does not fit"):
        TeacherOutputs(outputs.path)
