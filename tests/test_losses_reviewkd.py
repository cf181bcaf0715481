"""ReviewKD: a value worked out by hand, gradients, and sizes as the authors have them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ndfast.losses import ReviewKD, hcl_loss

Maps = tuple[Tensor, ...]  # stages from high to low resolution, and features


def review(*channels: tuple[int, ...]) -> ReviewKD:
    return ReviewKD(*channels, mid_channels=2).double().eval()


def test_by_hand() -> None:
    model = ReviewKD((1, 1, 1), (1, 1, 1)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30  # with running means of 0 and variances of 1: the identity
        elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = torch.tensor([[[[7.0, 7.0, 7.0], [0.0, 2.0, 0.0], [7.0] * 3]]])
    # The shares of the stage and of the deeper ones: 3/4 and 1/4, which the second stage draws from
    # the deeper ones (they are 2), and the first has from the bias.
    third = math.log(3)
    for fusion, weight, bias in (
        (model.fusions[1], third / 2, 0.0),
        (model.fusions[2], 0.0, third),
    ):
        attention = fusion.attention[0]
        attention.weight.data = torch.tensor([[0.0, weight], [0.0, -weight]])[..., None, None]
        attention.bias.data = torch.tensor([bias, -bias])
    student = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[6.0]]]), torch.tensor([[2.0]])
    teacher = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[9.0]]]), torch.tensor([[3.0]])
    # Fused: 2, 6·3/4 + 2·1/4 = 5, (1, 3)·3/4 + 5·1/4 = (2, 7/2). Twice that against the teacher's:
    # off by 1, 1, and (1, 3), whose mean square is 5 and whose mean 2.
    expected = 1 + 1 + (5 + 4 / 2) / (1 + 1 / 2)
    assert model(student, teacher).item() == pytest.approx(expected)


def outputs(dtype: torch.dtype = torch.float64) -> tuple[Maps, Maps]:
    """Of a student and a teacher whose stages differ in widths and sizes."""
    student, teacher = (
        tuple(
            torch.randn(2, *shape, dtype=dtype, requires_grad=True)
            for shape in (
                (channels[0], side, side),
                (channels[1], side // 2, side // 2),
                channels[2:],
            )
        )
        for channels, side in (((2, 3, 4), 4), ((3, 4, 5), 6))
    )
    return student, teacher


def test_only_a_students_stages_go_through_what_comes_before_the_fusion(seed: int) -> None:
    student, teacher = outputs()
    plain = ReviewKD((2, 3, 4), (3, 4, 5), mid_channels=2).double().eval()
    model = ReviewKD((2, 3, 4), (3, 4, 5), 2, before_fusion=torch.relu).double().eval()
    model.load_state_dict(plain.state_dict())
    active = (*(stage.relu() for stage in student[:-1]), student[-1])
    torch.testing.assert_close(model(student, teacher), plain(active, teacher), rtol=0, atol=0)
    assert model(student, teacher) != plain(student, teacher)


def test_trains_everything_but_the_teacher(seed: int) -> None:
    student, teacher = outputs()
    model = review((2, 3, 4), (3, 4, 5)).train()
    model(student, teacher).backward()
    for tensor in (*student, *model.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.count_nonzero() > 0
    assert all(tensor.grad is None for tensor in teacher)


def test_gradients(seed: int) -> None:
    student, teacher = outputs()
    model = review((2, 3, 4), (3, 4, 5))

    def loss(first: Tensor, second: Tensor, features: Tensor, *parameters: Tensor) -> Tensor:
        return model((first, second, features), teacher)

    inputs = (*student, *model.parameters())
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_is_sized_and_initialised_as_the_authors_have_it(seed: int) -> None:
    for dim, mid_channels in ((64, 64), (600, 512)):
        deepest, first = ReviewKD((16, dim), (32, 8)).fusions
        for fusion, channels, out_channels in ((deepest, dim, 8), (first, 16, 32)):
            inner, outer = fusion.inner[0].weight, fusion.outer[0].weight
            assert inner.shape == (mid_channels, channels, 1, 1)
            assert outer.shape == (out_channels, mid_channels, 3, 3)
            for weight in (inner, outer):  # uniform up to √(3 / fan-in)
                bound = math.sqrt(3 / weight[0].numel())
                assert 0.95 * bound < weight.abs().max() <= bound


def test_wants_equal_numbers_of_stages() -> None:
    with pytest.raises(ValueError, match=r"^teacher_channels: got 4 for 3 of the student; "):
        ReviewKD((1, 2, 2), (1, 2, 3, 3))
    with pytest.raises(ValueError, match=r"^teacher_channels: got 0 for 0 of the student; "):
        ReviewKD((), ())


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_wants_the_stages_that_it_was_built_for(name: str, seed: int) -> None:
    given = dict(zip(("student", "teacher"), outputs(), strict=True))
    given[name] = given[name][1:]
    with pytest.raises(ValueError, match=rf"^{name}: got 2 stages and features; expected 3$"):
        review((2, 3, 4), (3, 4, 5))(**given)


def test_wants_the_rows_and_channels_of_the_teacher(seed: int) -> None:
    student, teacher = outputs()
    one_row = [maps[:1] for maps in teacher]
    with pytest.raises(ValueError, match=r"^teacher_stages\[0\]: got shape \[1, 5, 1, 1\]"):
        review((2, 3, 4), (3, 4, 5))(student, one_row)
    with pytest.raises(ValueError, match=r"^teacher_stages\[0\]: got shape \[2, 5, 1, 1\]"):
        review((2, 3, 4), (3, 4, 6))(student, teacher)


MAPS = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("student", "teacher", "error", "sentence"),
    [
        ([], [], ValueError, r"^teacher_stages: got 0 for 0 of the student; expected as many"),
        ([MAPS], [MAPS, MAPS], ValueError, r"^teacher_stages: got 2 for 1 of the student"),
        ([MAPS], [MAPS[:, :1]], ValueError, r"^teacher_stages\[0\]: got shape \[2, 1, 4, 4\]"),
        ([MAPS, MAPS[0]], [MAPS, MAPS[0]], ValueError, r"^student_stages\[1\]: got shape \[3, 4"),
        ([MAPS[:, :0]], [MAPS[:, :0]], ValueError, r"^student_stages\[0\]: got shape \[2, 0"),
        ([MAPS.long()], [MAPS], TypeError, r"^student_stages\[0\]: got dtype torch.int64"),
        ([MAPS], [MAPS.long()], TypeError, r"^teacher_stages\[0\]: got dtype torch.int64"),
    ],
)
def test_hcl_of_wrong_stages(
    student: list[Tensor], teacher: list[Tensor], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        hcl_loss(student, teacher)


@pytest.mark.parametrize("training", [True, False])
def test_no_row(training: bool, seed: int) -> None:
    student, teacher = ([maps[:0] for maps in output] for output in outputs())
    model = review((2, 3, 4), (3, 4, 5)).train(training)
    loss = model(student, teacher)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad.count_nonzero() == 0 for parameter in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_float16_stages_times_50(seed: int) -> None:
    student, teacher = (50 * torch.randn(2, 2, 3, 8, 8)).half()
    student.requires_grad_()
    loss = hcl_loss([student], [teacher])
    loss.backward()
    expected = hcl_loss([student.double()], [teacher.double()])
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0.0)
    assert student.grad.isfinite().all()


def test_a_teacher_of_inference_mode(seed: int) -> None:
    student, teacher = outputs()
    with torch.inference_mode():
        constant = [maps.clone() for maps in teacher]
    model = review((2, 3, 4), (3, 4, 5))
    loss = model(student, constant)
    loss.backward()
    torch.testing.assert_close(loss, model(student, teacher))


def test_under_autocast(seed: int) -> None:
    student, teacher = outputs(torch.float32)
    model = ReviewKD((2, 3, 4), (3, 4, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
