"""How many bytes the CUDA kernels move, counted as nvcc's code asks for them.

Of a batch past the caches these are its time: rows of student, teacher and gradient, each once.
Class means and a value a row come from L2 and are not counted.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from cases import draw, rows_of
from compiled_ptx import Machine

from ndfast.backends import cuda

pytestmark = pytest.mark.usefixtures("cuda_in_ptx")

N, K = 40, 4
# On 4, 8, 16 and 32 lanes, on a block; and in rounds, which read student twice.
WIDTHS = [(16, 1), (64, 1), (128, 1), (256, 1), (1024, 1), (12_304, 2)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize(("D", "times"), WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_way_moves_its_rows_once(
    D: int, times: int, dtype: torch.dtype, ptx_machine: Machine, seed: int
) -> None:
    rows = rows_of(draw(N, D, K, dtype))
    assert rows.teacher is not None
    size = rows.student.nbytes
    few = 5 * 4 * N + 1024  # written: values of rows, and the blocks' sums

    # fused: student, teacher and the student's gradient.
    with ptx_machine.counting(rows.student, rows.teacher) as moved:
        _, saved, grad_student = cuda.forward(*rows, 2, True)
    assert moved[:2] == [times * size, size]
    assert size <= moved[2] <= size + few
    # Its backward: nothing where the upstream gradient is what it was written for, else once more
    # student and gradient.
    call = (saved, rows.student, *rows.centres)
    for upstream, written_for in product((1.0, 2.0), repeat=2):
        passes = int(upstream != written_for)
        with ptx_machine.counting(rows.student, grad_student, rows.class_means) as moved:
            cuda.finish_gradient_(grad_student, torch.tensor(upstream), *call, written_for)
        assert moved[:2] == [passes * size, 0]
        assert moved[3] == passes * size
        assert (moved[2] == 0) == (passes == 0)

    # deferred: two values a row, then student and gradient.
    with ptx_machine.counting(rows.student, rows.teacher) as moved:
        cuda.forward(*rows, 2, False)
    assert moved[:2] == [size, size]
    assert moved[2] <= few
    # attached: besides them the classifier's gradient.
    for grad_features in (None, torch.randn(N, D).to(dtype)):
        call = (saved, rows.student, rows.teacher, *rows.centres)
        watched = [rows.student] if grad_features is None else [rows.student, grad_features]
        with ptx_machine.counting(*watched, rows.teacher) as moved:
            cuda.backward(torch.ones(()), *call, grad_features, True, False, False)
        assert moved == [*[size] * len(watched), 0, size]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_of_the_teacher_spare_its_rows(
    dtype: torch.dtype, ptx_machine: Machine, seed: int
) -> None:
    for teacher in ("norms", "absent"):
        rows = rows_of(draw(N, 256, K, dtype, teacher=teacher))
        with ptx_machine.counting(rows.student) as moved:
            cuda.forward(*rows, 2, True)
        assert moved[0] == rows.student.nbytes
