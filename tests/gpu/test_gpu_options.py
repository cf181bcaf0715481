"""Every option on a GPU, against the definition in float64; shapes, alignment, bad input."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import pytest
import torch
from cases import Case, assert_as_defined, draw, every_option, worst_error
from on_gpu import DTYPES, HALVES, shifted, student_gradient, to_gpu
from spreads import SPREADS, with_rows_of_class

import ndfast

pytestmark = pytest.mark.gpu
T = TypeVar("T")

LENGTHS = (1, 2, 3, 31, 33, 64, 127, 255, 513, 1000, 1025, 2049, 4096, 4097, 8200, 16_384)
FEW_OPTIONS = (
    {},
    {"target": "mix by row", "ignoring": True, "weighted": True, "teacher": "absent"},
    {"target": "a centre a row", "reduction": "none", "teacher": "norms", "attached": True},
)


def some(backend: str, items: Sequence[T], every: int) -> Sequence[T]:
    """All of them; for Triton, which compiles its kernels for each anew, a part.

    Its interpreter goes through all of them, in tests/test_triton.py.
    """
    return items[::every] if backend == "triton" else items


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_option(dtype: torch.dtype, attached: bool, backend: str, seed: int) -> None:
    for number, option in enumerate(some(backend, list(every_option()), 7)):
        means_dtype = (torch.float32, dtype, torch.bfloat16)[number % 3]
        case = draw(9, 37, 4, dtype, means_dtype=means_dtype, attached=attached, **option)
        assert_as_defined(to_gpu(case), backend, (seed, means_dtype, option))


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_student_alone(dtype: torch.dtype, attached: bool, backend: str, seed: int) -> None:
    # Half as many coefficients a row are kept, and in float32 the gradient comes from forward.
    bound = 1e-5 if dtype == torch.float32 else 2e-3
    for option in some(backend, list(every_option()), 7):
        case = to_gpu(draw(9, 64, 4, dtype, attached=attached, **option))
        alone, among_others = student_gradient(case, backend), case.run(backend)["student"]
        error = worst_error(alone, among_others.double(), None)
        assert error <= bound, f"seed {seed}, {option}: off by {error:.2e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_lengths(dtype: torch.dtype, backend: str, seed: int) -> None:
    for D in some(backend, LENGTHS, 3):
        for option in some(backend, FEW_OPTIONS, 3):
            for means_dtype in some(backend, list({torch.float32, dtype}), 2):
                case = draw(5, D, 2, dtype, means_dtype=means_dtype, **option)
                assert_as_defined(to_gpu(case), backend, (seed, D, means_dtype, option))


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("is_student", [True, False])
def test_float32_beside_half_precision(
    half: torch.dtype, is_student: bool, backend: str, seed: int
) -> None:
    dtype, teacher_dtype = (half, torch.float32) if is_student else (torch.float32, half)
    for D in some(backend, (64, 512, 2048, 9000), 3):
        for target in ("indices", "mix by row"):
            case = draw(70, D, 4, dtype, target=target, teacher_dtype=teacher_dtype)
            assert_as_defined(to_gpu(case), backend, (seed, D, target))


@pytest.mark.parametrize("N", [1, 31, 1000, 20_000])
def test_numbers_of_rows(N: int, backend: str, seed: int) -> None:
    for option in FEW_OPTIONS:
        case = to_gpu(draw(N, 64, 10, torch.float32, **option))
        assert_as_defined(case, backend, (seed, N, option))


@pytest.mark.parametrize("target", ["indices", "mix by row"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_classes_of_every_size(dtype: torch.dtype, target: str, backend: str, seed: int) -> None:
    spreads = {**SPREADS, "detection": ([30_000, *[120] * 80], 400)}
    for spread, (counts, ignored) in spreads.items():
        for D in some(backend, (72, 37), 2):
            case = draw(sum(counts) + ignored, D, len(counts), dtype, target=target)
            case = to_gpu(with_rows_of_class(case, counts, -100))
            assert_as_defined(case, backend, (seed, spread, D))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", ["student", "teacher", "class_means", "grad_features"])
def test_misaligned_and_strided(which: str, dtype: torch.dtype, backend: str, seed: int) -> None:
    for D in some(backend, (1000, 64, 512, 4096), 4):
        case = to_gpu(draw(6, D, 3, dtype, means_dtype=dtype, attached=which == "grad_features"))
        plain = getattr(case, which)
        wide = torch.cat([plain.new_zeros(len(plain), 1), plain], dim=1)
        layouts = {
            "an element off": shifted(plain, 1),
            "rows of odd stride": wide[:, 1:],
            "every other row": plain.repeat_interleave(2, dim=0)[::2],
            "transposed": plain.T.contiguous().T,
            "expanded": plain[:1].expand_as(plain),
        }
        for layout, tensor in layouts.items():
            other = dataclasses.replace(case, **{which: tensor})
            assert_as_defined(other, backend, (seed, D, which, layout))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(reduction: str, backend: str) -> None:
    student = torch.empty(0, 64, device="cuda", requires_grad=True)
    class_means = torch.randn(3, 64, device="cuda", requires_grad=True)
    target = torch.empty(0, dtype=torch.int64, device="cuda")
    arguments = (student, None, class_means, target)
    options = {"reduction": reduction, "backend": backend}
    loss = ndfast.nd_loss(*arguments, **options)
    grads = torch.autograd.grad(loss.sum(), (student, class_means))
    assert loss.tolist() == ([] if reduction == "none" else 0)
    assert grads[0].shape == (0, 64)
    assert (grads[1] == 0).all()
    features, loss = ndfast.attach_nd_loss(*arguments, **options)
    (features.sum() + loss.sum()).backward()
    assert student.grad.shape == features.shape == (0, 64)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("attached", [False, True])
def test_labels_out_of_range_give_nan_rows(
    attached: bool, dtype: torch.dtype, backend: str, seed: int
) -> None:
    bad = {
        torch.int64: [3, -1, 2**40, -(2**63), 2**63 - 1],
        torch.int32: [3, -1, 2**31 - 1, -(2**31)],
        torch.uint8: [3, 255],
    }[dtype]
    labels = torch.tensor([0, *bad, 2], dtype=dtype, device="cuda")
    N = len(labels)
    student, teacher = torch.randn(2, N, 512, device="cuda")
    class_means = torch.randn(3, 512, device="cuda", requires_grad=True)
    function = ndfast.attach_nd_loss if attached else ndfast.nd_loss

    def run(rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        leaf = student[rows].clone().requires_grad_()
        arguments = (leaf, teacher[rows], class_means, labels[rows])
        loss = function(*arguments, reduction="none", ignore_index=-100, backend=backend)
        loss = loss[1] if attached else loss
        return loss, *torch.autograd.grad(loss.sum(), (leaf, class_means))

    loss, grad, grad_means = run(slice(None))
    good_loss, good_grad, good_grad_means = run(slice(None, None, N - 1))
    is_bad = [False, *[True] * len(bad), False]
    assert loss.isnan().tolist() == is_bad
    assert grad.isnan().all(dim=1).tolist() == is_bad
    torch.testing.assert_close(loss[:: N - 1], good_loss, rtol=0, atol=0)
    torch.testing.assert_close(grad[:: N - 1], good_grad, rtol=0, atol=0)
    torch.testing.assert_close(grad_means, good_grad_means)
    with pytest.raises(IndexError, match="class 3 in row 1 is out of bounds"):
        ndfast.nd_loss(student, teacher, class_means, labels, backend=backend, validate=True)


def test_tensors_on_different_devices_are_named(backend: str) -> None:
    case = draw(4, 8, 3, torch.float32, weighted=True)
    options = case.options | {"backend": backend}
    on_gpu = to_gpu(case)
    fields = {"teacher": case.teacher, "class_means": case.class_means, "target": case.target}
    for name, on_cpu in fields.items():
        mixed: Case = dataclasses.replace(on_gpu, **{name: on_cpu})
        arguments = (mixed.student, mixed.teacher, mixed.class_means, mixed.target)
        with pytest.raises(ValueError, match=rf"{name}: is on cpu, but student on cuda:0"):
            ndfast.nd_loss(*arguments, **to_gpu(options))
    arguments = (on_gpu.student, on_gpu.teacher, on_gpu.class_means, on_gpu.target)
    with pytest.raises(ValueError, match="sample_weight: is on cpu, but student on cuda:0"):
        ndfast.nd_loss(*arguments, **options)


def test_another_device_than_the_current_one(backend: str, seed: int) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(1):
        case = to_gpu(draw(300, 512, 4, torch.float32, attached=True))
    assert torch.cuda.current_device() == 0
    assert_as_defined(case, backend, seed)
    assert torch.cuda.current_device() == 0
