"""A teacher's outputs on disk: what is written is read, in pieces, whole, and of nothing else."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ndfast
from ndfast import TeacherOutputs, teacher_outputs, teacher_outputs_description
from ndfast.teacher_outputs_pieces import Piece

ROWS, VIEWS, K = 10, 3, 4


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    # Records of 20 bytes in float32: four rows a piece, so that a view has pieces of 4, 4 and 2.
    monkeypatch.setattr(teacher_outputs, "_PIECE_BYTES", 80)


@pytest.fixture
def made(tmp_path: Path, seed: int) -> tuple[TeacherOutputs, Tensor, Tensor]:
    """All outputs, and the logits [VIEWS, ROWS, K] and norms [VIEWS, ROWS] in them."""
    logits, norms = torch.randn(VIEWS, ROWS, K), torch.rand(VIEWS, ROWS)
    outputs = begin(tmp_path / "outputs")
    write_all(outputs, logits, norms)
    return outputs, logits, norms


def begin(folder: Path, **given: Any) -> TeacherOutputs:
    sizes = {"rows": ROWS, "num_views": VIEWS, "num_classes": K}
    return TeacherOutputs.create(folder, **sizes | {"teacher": "t", "data": [1, "d"]} | given)


def write_all(
    outputs: TeacherOutputs, logits: Tensor, norms: Tensor, rank: int = 0, processes: int = 1
) -> None:
    for piece in outputs.missing(rank, processes):
        rows = slice(piece.start, piece.stop)
        outputs.write(piece, logits[piece.view, rows], norms[piece.view, rows])


def test_each_row_and_view_comes_back_to_the_bit(
    made: tuple[TeacherOutputs, Tensor, Tensor],
) -> None:
    outputs, logits, norms = made
    order = torch.randperm(ROWS * VIEWS)
    rows, views = order % ROWS, order // ROWS
    for opened in (outputs, TeacherOutputs(outputs.path), TeacherOutputs(str(outputs.path))):
        for given in ((rows, views), (rows.tolist(), views.tolist()), (rows.numpy(), views.int())):
            found_logits, found_norms = opened.read(*given)
            assert torch.equal(found_logits, logits[views, rows])
            assert torch.equal(found_norms, norms[views, rows])
    assert (found_logits.dtype, found_norms.dtype) == (torch.float32, torch.float32)
    empty_logits, empty_norms = outputs.read([], [])
    assert (empty_logits.shape, empty_norms.shape) == ((0, K), (0,))
    # What is read is the caller's own.
    found_logits.zero_()
    assert torch.equal(outputs.read(rows, views)[0], logits[views, rows])


def test_the_loss_takes_what_is_read(made: tuple[TeacherOutputs, Tensor, Tensor]) -> None:
    outputs, _, norms = made
    student, means = torch.randn(2, 6, requires_grad=True), torch.randn(K, 6)
    _, found = outputs.read([3, 9], [2, 0])
    loss = ndfast.nd_loss(student, found, means, torch.tensor([1, 3]))
    expected = ndfast.nd_loss(student, norms[[2, 0], [3, 9]], means, torch.tensor([1, 3]))
    assert torch.equal(loss, expected)


def test_float16_rounds_logits_and_leaves_norms(tmp_path: Path, seed: int) -> None:
    logits, norms = torch.randn(VIEWS, ROWS, K), torch.rand(VIEWS, ROWS)
    logits[0, 0, 0] = -torch.inf  # a class that the teacher lacks
    outputs = begin(tmp_path, dtype=torch.float16)
    assert outputs.dtype == torch.float16
    write_all(outputs, logits, norms)
    found_logits, found_norms = TeacherOutputs(tmp_path).read([*range(ROWS)], [0] * ROWS)
    assert torch.equal(found_logits, logits[0].half())
    assert torch.equal(found_norms, norms[0])


def test_pieces_are_shared_out_and_gone_on_with(tmp_path: Path, seed: int) -> None:
    logits, norms = torch.randn(VIEWS, ROWS, K), torch.rand(VIEWS, ROWS)
    outputs = begin(tmp_path)
    assert outputs.pieces([1]) == [Piece(1, 0, 4), Piece(1, 4, 8), Piece(1, 8, 10)]
    assert outputs.missing() == outputs.pieces() == outputs.pieces(range(VIEWS))
    shares = [outputs.missing(rank, 4) for rank in range(4)]
    assert sorted(piece for share in shares for piece in share) == outputs.pieces()
    write_all(begin(tmp_path), logits, norms, rank=1, processes=2)
    assert outputs.missing(1, 2) == []
    left = outputs.missing()
    assert left == outputs.pieces()[0::2]
    assert outputs.missing(views=[1]) == [piece for piece in left if piece.view == 1]
    with pytest.raises(ValueError, match=r"the outputs of view 0 from row 0 on are not there"):
        outputs.read([0], [0])
    with pytest.raises(ValueError, match=r"the outputs of view 0 from row 0 on are not there"):
        outputs.verify()
    reader = TeacherOutputs(tmp_path)
    write_all(begin(tmp_path), logits, norms)
    assert outputs.missing() == []
    assert torch.equal(reader.read([0], [0])[0], logits[0, :1])  # made since it was opened
    reader.verify()


def test_epochs_are_added(made: tuple[TeacherOutputs, Tensor, Tensor]) -> None:
    outputs, logits, _ = made
    more = begin(outputs.path, num_views=5)
    assert {piece.view for piece in more.missing()} == {3, 4}
    assert begin(outputs.path).num_views == TeacherOutputs(outputs.path).num_views == 5
    assert torch.equal(more.read([7], [2])[0], logits[2, 7:8])
    with pytest.raises(ValueError, match=r"the outputs of view 3 from row 4 on are not there"):
        more.read([7], [3])


def test_pieces_keep_their_size(
    made: tuple[TeacherOutputs, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, logits, norms = made
    monkeypatch.setattr(teacher_outputs, "_PIECE_BYTES", 40)  # of another version
    more = begin(outputs.path, num_views=4)
    assert more.missing() == more.pieces([3]) == [Piece(3, 0, 4), Piece(3, 4, 8), Piece(3, 8, 10)]
    for piece in more.missing():
        rows = slice(piece.start, piece.stop)
        more.write(piece, logits[0, rows], norms[0, rows])
    assert torch.equal(TeacherOutputs(outputs.path).read([9], [3])[0], logits[0, 9:])


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


def read_in_worker(outputs: TeacherOutputs) -> list[float]:
    return outputs.read([1, 9], [0, 2])[1].tolist()


def test_a_worker_takes_no_copy_of_the_files(made: tuple[TeacherOutputs, Tensor, Tensor]) -> None:
    outputs, _, norms = made
    outputs.read([*range(ROWS)], [0] * ROWS)
    assert len(pickle.dumps(outputs)) < 3000
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found = pool.apply(read_in_worker, (pickle.loads(pickle.dumps(outputs)),))
    assert found == [norms[0, 1].item(), norms[2, 9].item()]


def test_a_piece_of_usual_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    outputs = begin(tmp_path, rows=50_000, num_views=162, num_classes=100, dtype=torch.float16)
    assert outputs.pieces([161]) == [Piece(161, 0, 50_000)]
    large = begin(tmp_path / "large", rows=1_281_167, num_views=2, num_classes=1000)
    assert large.pieces()[0].stop * (4 * 1000 + 4) <= 2**26
    assert large.pieces([0])[-1].stop == 1_281_167


def test_files_are_as_numpy_has_them(made: tuple[TeacherOutputs, Tensor, Tensor]) -> None:
    outputs, logits, norms = made
    found = np.load(next(outputs.path.glob("view00002-row000000008.*.npy")), allow_pickle=False)
    assert found["norm"].tolist() == norms[2, 8:].tolist()
    assert found["logits"].tolist() == logits[2, 8:].tolist()
