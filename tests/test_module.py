"""NDLoss, the module."""

from __future__ import annotations

import pytest
import torch

import ndfast


def test_module_is_the_function(seed: int) -> None:
    s, t, c = torch.randn(5, 7), torch.randn(5, 7), torch.randn(3, 7)
    labels, weights = torch.tensor([0, 1, 9, 2, 1]), torch.rand(5)
    options = {"reduction": "sum", "ignore_index": 9, "eps": 3.0, "backend": "reference"}
    module = ndfast.NDLoss(c, 2.0, **options)
    expected = ndfast.nd_loss(s, t, c, labels, weight=2.0, sample_weight=weights, **options)
    torch.testing.assert_close(module(s, t, labels, weights), expected, rtol=0, atol=0)
    assert expected != ndfast.nd_loss(s, t, c, labels, weight=2.0, ignore_index=9, reduction="sum")


def test_validate_is_handed_on() -> None:
    shares = ndfast.Mix(torch.tensor([0]), torch.tensor([1]), torch.tensor([2.0]))
    features = torch.randn(1, 7)
    ndfast.NDLoss(torch.randn(3, 7))(features, None, shares)
    with pytest.raises(ValueError, match=r"target\.lam"):
        ndfast.NDLoss(torch.randn(3, 7), validate=True)(features, None, shares)


def test_class_means_are_a_copied_buffer_or_a_parameter(seed: int) -> None:
    c = torch.randn(3, 7)
    fixed, learnable = ndfast.NDLoss(c), ndfast.NDLoss(c, learnable=True)
    assert list(fixed.state_dict()) == list(learnable.state_dict()) == ["class_means"]
    assert list(fixed.parameters()) == []
    assert [p.shape for p in learnable.parameters()] == [c.shape]
    assert fixed.double().class_means.dtype == torch.float64
    assert c.dtype == torch.float32
    loss = learnable(torch.randn(2, 7), None, torch.tensor([0, 2]))
    loss.backward()
    assert learnable.class_means.grad.any(dim=1).tolist() == [True, False, True]
    with torch.no_grad():
        learnable.class_means.zero_()
    assert c.any()
    assert "learnable class means of 3 classes, 7 features" in repr(learnable)


def test_a_student_trains_towards_its_class_means(seed: int) -> None:
    c = torch.nn.functional.normalize(torch.randn(3, 7)) * 4
    labels = torch.arange(3).repeat(4)
    student = torch.randn(12, 7, requires_grad=True)
    optimizer = torch.optim.SGD([student], lr=40.0)
    module = ndfast.NDLoss(c)
    first = module(student, c[labels], labels).item()
    for _ in range(50):
        optimizer.zero_grad()
        loss = module(student, c[labels], labels)
        loss.backward()
        optimizer.step()
    assert first > 0.5
    assert loss.item() < 0.01
    cosine = torch.nn.functional.cosine_similarity(student, c[labels])
    assert cosine.min() > 0.98
    assert student.norm(dim=1).min().item() == pytest.approx(4, rel=0.3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight": "2"}, TypeError, "weight: got str"),
        ({"reduction": "avg"}, ValueError, "reduction: 'avg' is not"),
        ({"ignore_index": 1.0}, TypeError, "ignore_index: got float"),
        ({"eps": -1e-8}, ValueError, "eps: got -1e-08"),
        ({"backend": "gpu"}, ValueError, "backend: 'gpu'"),
    ],
)
def test_bad_options_are_told_when_the_module_is_built(
    options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ndfast.NDLoss(torch.randn(3, 7), **options)
