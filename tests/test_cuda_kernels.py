"""The CUDA kernels and their launches, run on the CPU by an emulator, against the definition.

What the machine code is like is in test_cuda_code.py; what only a GPU shows is in gpu/.
"""

from __future__ import annotations

import pytest
import torch
from cases import assert_as_defined, draw, every_option, rows_of
from gpu_backends import check_finished_gradient, check_labels_out_of_range

import ndfast
from ndfast.backends import cuda, reference

pytestmark = pytest.mark.usefixtures("cuda_code")

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_option(dtype: torch.dtype, seed: int) -> None:
    for i, option in enumerate(every_option()):  # a row is 10 or 5 pieces of 16 bytes
        case = draw(9, 40, 4, dtype, attached=i % 2 == 0, **option)
        assert_as_defined(case, "cuda", (i, option))


# Every layout: a row on 4 lanes, of two pieces each and of four; on 8, 16 and 32; on a block; in
# rounds.
PIECES = (3, 13, 29, 60, 125, 257, 1540)
OPTIONS = (
    {"weighted": True, "ignoring": True},
    {"target": "mix by row", "teacher": "norms", "reduction": "none"},
    {"target": "mix", "ignoring": True},
    {"target": "a centre a row", "teacher": "absent", "reduction": "sum"},
)


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
def test_every_layout(dtype: torch.dtype, pieces: int, seed: int) -> None:
    D = pieces * 16 // dtype.itemsize
    for i, means_dtype in enumerate(FLOATS[:3]):
        option = OPTIONS[(i + pieces) % len(OPTIONS)]
        # More rows than the emulated GPU has room for at once: each group takes several.
        rows = 70 if pieces < 64 else 9
        for attached in (False, True):
            case = draw(rows, D, 4, dtype, means_dtype=means_dtype, attached=attached, **option)
            assert_as_defined(case, "cuda", (D, means_dtype, attached, option))


# One is float32, as a LayerNorm's features are under autocast, and the other is not.
APART = [pair for half in FLOATS[1:3] for pair in ((half, torch.float32), (torch.float32, half))]


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize(("dtype", "teacher_dtype"), APART, ids=str)
def test_every_layout_beside_a_teacher_of_another_type(
    dtype: torch.dtype, teacher_dtype: torch.dtype, pieces: int, seed: int
) -> None:
    rows, take_launched = 70 if pieces < 64 else 9, torch.ops.ndfast_emulator.take_launched
    D = pieces * 16 // dtype.itemsize
    for target in ("indices", "mix by row"):
        for means_dtype in (torch.float32, torch.bfloat16):
            case = draw(
                rows, D, 4, dtype, means_dtype=means_dtype, target=target,
                teacher_dtype=teacher_dtype,
            )  # fmt: skip
            take_launched()
            assert_as_defined(case, "cuda", (pieces, means_dtype, target))
            forward, *backward = take_launched().splitlines()
            assert "forward" in forward
            # Rows that no registers hold go round by round as usual, or else an element at a time.
            is_plain = means_dtype != torch.float32 or pieces == PIECES[-1]
            assert ("AnyType" in forward) == is_plain, forward
            # The teacher's gradient is last, in pieces of its own type.
            *others, of_teacher = ["AnyType" in kernel for kernel in backward]
            are_compiled = means_dtype in (torch.float32, dtype if target == "indices" else None)
            assert set(others) == {not are_compiled}
            assert of_teacher == (D * teacher_dtype.itemsize % 16 != 0)


@pytest.mark.parametrize(("offset", "is_plain"), [(4, False), (8, False), (2, True), (1, True)])
@pytest.mark.parametrize("teacher_dtype", FLOATS[1:3], ids=str)
def test_a_half_precision_teacher_is_read_where_8_bytes_are_aligned(
    teacher_dtype: torch.dtype, offset: int, is_plain: bool, seed: int
) -> None:
    rows = rows_of(draw(6, 48, 4, torch.float32, teacher_dtype=teacher_dtype))
    wider = torch.full((6, 48 + 12), torch.nan, dtype=teacher_dtype)
    wider[:, offset : offset + 48] = rows.teacher
    torch.ops.ndfast_emulator.take_launched()
    found = cuda.forward(*rows._replace(teacher=wider[:, offset : offset + 48]), 4, True)
    (kernel,) = torch.ops.ndfast_emulator.take_launched().splitlines()
    assert ("AnyType" in kernel) == is_plain, kernel
    for got, expected in zip(found, cuda.forward(*rows, 4, True), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("attached", [False, True])
def test_a_centre_a_row_beside_a_teacher_of_float32(attached: bool, seed: int) -> None:
    case = draw(
        9, 64, 4, torch.bfloat16, target="a centre a row", teacher_dtype=torch.float32,
        attached=attached,
    )  # fmt: skip
    assert_as_defined(case, "cuda", attached)


@pytest.mark.parametrize("D", [1, 2, 37, 513])
def test_rows_that_are_no_whole_pieces(D: int, seed: int) -> None:
    for dtype in FLOATS:
        for option in OPTIONS:
            case = draw(5, D, 4, dtype, attached=D % 2 == 1, **option)
            assert_as_defined(case, "cuda", (D, dtype, option))


def test_mixed_dtypes(seed: int) -> None:
    for student in FLOATS:
        for teacher in FLOATS:
            case = draw(5, 24, 4, student, means_dtype=torch.float64)
            case = case.__class__(**{**vars(case), "teacher": case.teacher.to(teacher)})
            assert_as_defined(case, "cuda", (student, teacher))


@pytest.mark.parametrize("offset", [0, 1, 8])
def test_slices_at_any_offset(offset: int, seed: int) -> None:
    case = draw(6, 48, 4, torch.bfloat16)

    def slice_of_wider(matrix: torch.Tensor) -> torch.Tensor:
        wider = torch.full((len(matrix), 48 + 21), torch.nan, dtype=matrix.dtype)
        wider[:, offset : offset + 48] = matrix
        return wider[:, offset : offset + 48]

    rows = rows_of(case)
    slices = rows._replace(
        student=slice_of_wider(rows.student),
        teacher=slice_of_wider(rows.teacher),
        class_means=slice_of_wider(rows.class_means),
    )
    for got, expected in zip(
        cuda.forward(*slices, 4, True), cuda.forward(*rows, 4, True), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("D", [20, 700])
def test_labels_out_of_range_are_nan_rows(D: int, mixed: bool, seed: int) -> None:
    check_labels_out_of_range(cuda, D, mixed)


@pytest.mark.parametrize("written_for", [1.0, 2.0])
@pytest.mark.parametrize("upstream", [1.0, 2.0, [1.0, 2.0, 1.0, -1.0]])
@pytest.mark.parametrize("D", [20, 21])
def test_a_finished_gradient_is_written_only_where_it_changes(
    D: int, upstream: float | list[float], written_for: float, seed: int
) -> None:
    check_finished_gradient(cuda, D, upstream, written_for)


@pytest.mark.parametrize("shape", [(1, 2**30 + 1), (2**30 + 1, 1)])
def test_more_than_loops_in_32_bits_can_pass_is_refused(shape: tuple[int, int]) -> None:
    rows = torch.zeros(1).expand(shape)  # no memory of their own
    call = (rows, None, rows, None, None, None, 1.0, None, 1.0, reference.SUM, -100, 1e-8)
    expected = rf"student: got \[{shape[0]}, {shape[1]}\]; expected at most 2\^30 rows of at most 2"
    with pytest.raises(RuntimeError, match=expected):
        cuda.forward(*call, 0, False)


def test_a_tie_of_norms_belongs_to_the_student(seed: int) -> None:
    for D in (64, 700, 5000, 37):
        student, class_means = torch.randn(4, D), torch.randn(4, D)
        call = (student, student.clone(), class_means, None, None, None, 1.0)
        saved = cuda.forward(*call, None, 1.0, reference.SUM, -100, 1e-8, 4, False)[1]
        coefficients = reference.coefficients_of(saved, 4, 4)
        assert (coefficients[1] != 0).all()
        assert (coefficients[2] == 0).all()


def test_forward_and_backward_round_a_mixed_centre_alike(seed: int) -> None:
    # Class means that all but cancel: rounded in two ways, they are two directions. With one
    # feature a centre has only a sign, and no gradient.
    N = 300
    means = torch.stack([torch.rand(N) + 1, -torch.rand(N) - 1], 1).view(-1, 1)
    first = 2 * torch.arange(N)
    lam = means[1::2, 0] / (means[1::2, 0] - means[::2, 0]) + 0.001
    student = torch.ones(N, 1, requires_grad=True)
    loss = ndfast.nd_loss(
        student, None, means.requires_grad_(), ndfast.Mix(first, first + 1, lam),
        reduction="none", backend="cuda",
    )  # fmt: skip
    loss.sum().backward()
    centres = lam * means[::2, 0] + (1 - lam) * means[1::2, 0]
    terms = 1 / centres.detach().abs()  # of a centre's gradient, before they cancel
    gradient = means.grad.view(N, 2).sum(1)
    assert (gradient.abs() <= 1e-6 * terms).all(), (gradient.abs() / terms).max()


def test_no_rows_and_only_ignored_rows(seed: int) -> None:
    student, class_means = torch.randn(3, 8, requires_grad=True), torch.randn(2, 8)
    for rows, labels in ((0, []), (3, [-100] * 3)):
        loss = ndfast.nd_loss(
            student[:rows], None, class_means, torch.tensor(labels, dtype=torch.int64),
            backend="cuda",
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss == 0
        assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("D", [1, 4, 8, 2050])
def test_no_rows_give_the_class_means_a_gradient_of_zero(dtype: torch.dtype, D: int) -> None:
    student, class_means = torch.empty(0, D, dtype=dtype), torch.ones(3, D, requires_grad=True)
    for target in (torch.empty(0, dtype=torch.int64), torch.empty(0, 3)):
        loss = ndfast.nd_loss(student, student, class_means, target, backend="cuda")
        (gradient,) = torch.autograd.grad(loss, class_means)
        assert torch.equal(gradient, torch.zeros(3, D))


def test_labels_of_every_dtype_and_stride(seed: int) -> None:
    case = draw(9, 16, 200, torch.float32)
    expected = case.run("reference")["loss"]
    for dtype in (torch.int64, torch.int32, torch.uint8):
        target = torch.stack([case.target.to(dtype), torch.full((9,), 99).to(dtype)], 1)[:, 0]
        loss = case.__class__(**{**vars(case), "target": target}).run("cuda")["loss"]
        torch.testing.assert_close(loss, expected)


def test_the_loss_is_bitwise_the_same_and_the_ticket_is_back(seed: int) -> None:
    case = draw(300, 32, 3, torch.float32, weighted=True)
    first = case.run("cuda")
    for _ in range(3):  # a ticket that was not back would leave the loss unwritten
        for name, value in case.run("cuda").items():
            assert torch.equal(value, first[name]), name


@pytest.mark.parametrize(
    ("tasks", "most", "blocks"),
    [
        (0, 4, 1),
        (3, 4, 3),
        (4, 4, 4),
        (5, 4, 3),  # 2, 2 and 1, not 2, 1, 1 and 1
        (4096, 1320, 1024),  # four each, not three and a round of 136
        (1320, 1320, 1320),
        (1321, 1320, 661),
    ],
)
def test_blocks_share_rows_evenly(tasks: int, most: int, blocks: int) -> None:
    assert torch.ops.ndfast_emulator.even_blocks(tasks, most) == blocks


def test_tickets() -> None:
    emulator = torch.ops.ndfast_emulator
    emulator.set_stream(1001)
    mine = emulator.take_ticket()
    assert emulator.take_ticket() == mine  # a stream's launches run one after the other
    emulator.set_stream(1002)
    assert emulator.take_ticket() != mine
    emulator.set_stream(1001)
    try:
        emulator.set_capture(7)
        captured = emulator.take_ticket()
        assert emulator.take_ticket() == captured != mine  # a graph may be replayed beside a stream
        assert emulator.take_ticket(1) not in (captured, mine)  # and its own streams beside others
        capture = 8
        while emulator.take_ticket() >= 0:
            emulator.set_capture(capture := capture + 1)
        # Used up: a ticket is allocated and set to 0.
        assert_as_defined(draw(5, 32, 3, torch.float32), "cuda", "no ticket left")
    finally:
        emulator.set_capture(0)
    assert emulator.take_ticket() == mine


@pytest.mark.parametrize(
    ("error", "advice"),
    [(1, ""), (900, "; before a CUDA graph is captured, run its step once outside")],
)
def test_a_launch_that_fails_raises(error: int, advice: str, seed: int) -> None:
    torch.ops.ndfast_emulator.fail_next_launch(error)
    with pytest.raises(RuntimeError, match="CUDA error in launching a kernel: ") as raised:
        draw(3, 8, 2, torch.float32).run("cuda")
    assert f"error {error}{advice}\n" in f"{raised.value}\n"
