"""A teacher's outputs on disk: what is written is read, in pieces, whole, and of nothing else."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ndfast
from ndfast import TeacherOutputs, teacher_outputs
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
