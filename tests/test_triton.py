"""The Triton kernels through Triton's interpreter.

Values at the edge (NaN, zeros, strides, N = 0) are in test_corners.py, for every backend.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import assert_as_defined, draw, every_option, rows_of, worst_error
from gpu_backends import (
    check_class_means_beside_bad_labels,
    check_finished_gradient,
    check_labels_out_of_range,
)

from ndfast.backends import reference

pytest.importorskip("triton", reason="the Triton backend needs triton")

import triton
import triton.language as tl
from triton.runtime import interpreter

from ndfast.backends import triton as backend
from ndfast.backends.triton import launch_table
from ndfast.backends.triton.launch_table import LaunchConfig
from ndfast.backends.triton.tiles import load_tile, store_tile
from ndfast.backends.triton.workspace import workspace

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.skipif(
        backend.unusable(CPU) is not None, reason="needs TRITON_INTERPRET=1, set where no GPU is"
    ),
    # Kernels divide first and select after; interpreted, NumPy speaks up.
    pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning"),
]

# Rows in one block and rows in three; a program that takes several tiles in turn.
LAYOUTS = {
    "one block": LaunchConfig(rows=2, block_d=64, num_warps=1, programs_per_sm=2),
    "three blocks": LaunchConfig(rows=4, block_d=16, num_warps=1, programs_per_sm=2),
}


@pytest.fixture
def use_layout(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the launch table's answer, a name of LAYOUTS."""

    def use(name: str) -> None:
        monkeypatch.setattr(launch_table, "default_config", lambda D, itemsize: LAYOUTS[name])

    return use


def test_every_option(use_layout: Callable[[str], None], seed: int) -> None:
    use_layout("one block")
    for option in every_option():
        assert_as_defined(draw(2, 37, 2, torch.float32, **option), "triton", (seed, option))


def test_rows_longer_than_a_block(use_layout: Callable[[str], None], seed: int) -> None:
    use_layout("three blocks")
    for option in some_options(seed, 20):
        assert_as_defined(draw(5, 37, 3, torch.float32, **option), "triton", (seed, option))


def some_options(seed: int, number: int) -> list[dict[str, Any]]:
    return random.Random(seed).sample(list(every_option()), number)


@pytest.fixture
def rounds_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter converts float32 to bfloat16 to nearest even.

    By itself it cuts the lower half off, which is twice the error.
    """
    convert = interpreter._convert_float

    def rounded(data: Any, source: Any, result: Any, mode: Any) -> Any:
        if (source, result) != (tl.float32, tl.bfloat16):
            return convert(data, source, result, mode)
        bits = torch.tensor(data).to(torch.bfloat16).view(torch.int16)
        return bits.numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


MIXTURES = [
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
]


@pytest.mark.usefixtures("rounds_as_a_gpu")
@pytest.mark.parametrize(("dtype", "means_dtype"), MIXTURES, ids=str)
def test_every_dtype(
    dtype: torch.dtype, means_dtype: torch.dtype, use_layout: Callable[[str], None], seed: int
) -> None:
    use_layout("one block")
    for option in some_options(seed, 10):
        case = draw(3, 37, 2, dtype, means_dtype=means_dtype, **option)
        assert_as_defined(case, "triton", (seed, dtype, option))


@pytest.mark.usefixtures("rounds_as_a_gpu")
@pytest.mark.parametrize(
    ("dtype", "means_dtype"), [(torch.float32, torch.float32), *MIXTURES], ids=str
)
def test_the_gradient_of_the_features_is_added_and_rounded_once(
    dtype: torch.dtype, means_dtype: torch.dtype, use_layout: Callable[[str], None], seed: int
) -> None:
    use_layout("one block" if dtype == torch.float32 else "three blocks")
    for option in some_options(seed, 30 if dtype == torch.float32 else 10):
        rows = rows_of(draw(3, 37, 2, dtype, means_dtype=means_dtype, **option))
        _, saved, _ = backend.forward(*rows, 4, False)
        upstream = torch.rand(3 if option["reduction"] == "none" else (), dtype=saved.dtype) + 0.5
        # About as large as the ND gradient; rows apart, and one element off 16 bytes.
        grad_features = (torch.randn(3, 40) * 0.05).to(dtype)[:, 1:38]
        before = grad_features.clone()
        call = (upstream, saved, *rows.inputs)
        needs = (True, option["teacher"] == "features", rows.target is None)  # by one kernel
        got, *others = backend.backward(*call, grad_features, *needs)

        coefficients = reference.coefficients_of(saved, 2, 3).double()
        alpha, beta = (coefficients * (upstream * saved[0]).double())[:, :, None]
        centres = reference.gather_centres(*rows.centres, torch.float64)
        centres = centres.nan_to_num()  # of an ignored label
        exact = before.double() + (alpha * centres + beta * rows.student.double())
        bound = 8 * torch.finfo(saved.dtype).eps * exact.abs().max()  # of the sums
        bound = bound + torch.finfo(dtype).eps / 2 * exact.abs()  # of rounding
        assert ((got.double() - exact).abs() <= bound).all(), (seed, option)
        assert torch.equal(grad_features, before), (seed, option)
        for other, alone in zip(others, backend.backward(*call, None, *needs)[1:], strict=True):
            assert torch.equal(other, alone), (seed, option)


def test_an_ignored_row_keeps_the_gradient_of_its_features(seed: int) -> None:
    student = torch.randn(2, 32)
    student[1] = torch.nan
    call = (student, None, torch.randn(3, 32), torch.tensor([2, -100]), None, None, 1.0)
    _, saved, _ = backend.forward(*call, None, 1.0, reference.SUM, -100, 1e-8, 2, False)
    grad_features = torch.randn(2, 35)[:, 3:]  # its rows are less aligned than all others
    grad_features[1, :4] = torch.tensor([-0.0, torch.nan, torch.inf, 1e-45])
    rows = (torch.tensor(2.0), saved, *call)
    gradient = backend.backward(*rows, grad_features, True, False, False)[0]
    assert torch.equal(gradient[1].view(torch.int32), grad_features[1].view(torch.int32)), seed
    assert (gradient[0] != grad_features[0]).all(), seed
    columns = grad_features.t().contiguous().t()
    assert torch.equal(backend.backward(*rows, columns, True, False, False)[0][0], gradient[0])


@pytest.mark.parametrize(
    ("dtype", "teacher_dtype"),
    [(torch.float32, torch.float16), (torch.float64, torch.bfloat16)],
    ids=str,
)
def test_teacher_and_class_means_may_be_narrower_than_the_student(
    dtype: torch.dtype, teacher_dtype: torch.dtype, seed: int
) -> None:
    case = draw(4, 37, 2, dtype, means_dtype=torch.bfloat16)
    case = replace(case, teacher=case.teacher.to(teacher_dtype))
    got, exact = case.run("triton"), case.to(torch.float64).run("reference")
    assert worst_error(got["loss"], exact["loss"], None) < 1e-5, seed
    assert worst_error(got["student"], exact["student"], None) < 1e-5, seed
    for name in ("teacher", "class_means"):
        epsilon = torch.finfo(got[name].dtype).eps  # once rounded, or cut off
        assert got[name].dtype == getattr(case, name).dtype
        error = (got[name] - exact[name]).abs()
        assert (error <= epsilon * exact[name].abs() + 1e-6).all(), (seed, name)


@pytest.mark.parametrize("D", [1, 3, 64, 500, 1000, 16_384])
def test_the_launch_table_serves_every_width(D: int, seed: int) -> None:
    assert_as_defined(draw(3, D, 2, torch.float32), "triton", D)


@pytest.mark.parametrize("mixed", [False, True])
def test_many_labels_that_are_no_class(mixed: bool, seed: int) -> None:
    # The kernels leave a gradient a row; with more of them the reference's code adds them up.
    check_class_means_beside_bad_labels(backend, 20, mixed, tens=1)


def test_uint8_labels_are_unsigned(seed: int) -> None:
    student, class_means = torch.randn(3, 20), torch.randn(210, 20)
    labels = torch.tensor([200, 255, 127], dtype=torch.uint8)
    options = (None, 1.0, reference.NONE, 255, 1e-8, 0, True)
    results = [
        backend.forward(student, None, class_means, target, None, None, 1.0, *options)
        for target in (labels, labels.long())
    ]
    assert results[0][0][0] != 0
    for narrow, wide in zip(*results, strict=True):
        assert torch.equal(narrow, wide), seed


@pytest.mark.parametrize("mixed", [False, True])
def test_labels_that_are_no_class_give_nan_and_read_nothing(mixed: bool, seed: int) -> None:
    check_labels_out_of_range(backend, 20, mixed)


@pytest.mark.parametrize("written_for", [1.0, 2.0])
@pytest.mark.parametrize("upstream", [1.0, 2.0, [1.0, 2.0, 1.0, -1.0]])
def test_a_finished_gradient_is_written_only_where_it_changes(
    upstream: Any, written_for: float, seed: int
) -> None:
    check_finished_gradient(backend, 20, upstream, written_for)


def test_without_a_gradient_the_loss_is_the_same(seed: int) -> None:
    case = draw(5, 37, 3, torch.float32)
    call = (case.student, case.teacher, case.class_means, case.target, None, None, 1.0)
    options = (None, 1.0, reference.MEAN, 255, 1e-8)
    expected = backend.forward(*call, *options, 8, True)
    for num_coefficients in (0, 2, 4, 8):
        loss, saved, gradient = backend.forward(*call, *options, num_coefficients, False)
        assert torch.equal(loss, expected[0])
        assert torch.equal(saved, expected[1][: 1 + 5 * num_coefficients])
        assert gradient.numel() == 0


def test_a_tie_of_norms_belongs_to_the_student(seed: int) -> None:
    student, class_means = torch.randn(4, 700), torch.randn(4, 700)
    call = (student, student.clone(), class_means, None, None, None, 1.0)
    saved = backend.forward(*call, None, 1.0, reference.SUM, -100, 1e-8, 4, False)[1]
    coefficients = reference.coefficients_of(saved, 4, 4)
    assert (coefficients[1] != 0).all()
    assert (coefficients[2] == 0).all()


def test_the_loss_is_bitwise_the_same_and_the_ticket_is_back(
    use_layout: Callable[[str], None], seed: int
) -> None:
    use_layout("one block")
    case = draw(9, 37, 3, torch.float32, weighted=True)
    first = case.run("triton")
    _, ticket = workspace(CPU)
    assert ticket == 0
    for name, value in case.run("triton").items():
        assert torch.equal(value, first[name]), name


@triton.jit
def _copy_row(out, matrix, row, stride, D: tl.constexpr, ALIGN: tl.constexpr):
    rows = tl.arange(0, 1).to(tl.int64) + row
    tile = load_tile(matrix, rows, stride, rows >= 0, 0, D, 16, ALIGN, tl.float32)
    store_tile(out, rows, rows >= 0, 0, tile, D, 16)


def test_offsets_pass_2_to_the_31_elements(untouched_memory: None) -> None:
    # Memory that is never touched is never there: only pages of the first and last row are.
    row = 2**31 // 16 + 1
    buffer = torch.empty(row + 1, 16, dtype=torch.bfloat16)
    buffer[row] = torch.arange(16)
    # What a 32-bit offset would come to lies before the buffer: the process would end.
    _copy_row[(1,)](buffer, buffer, row, 1, D=16, ALIGN=16)
    assert buffer[row].tolist() == list(range(16))
