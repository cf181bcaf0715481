"""More elements, and rows further apart, than int32 counts; no memory is touched for them."""

from __future__ import annotations

import math

import pytest
import torch

import ndfast
from ndfast.backends import native


def test_rows_further_apart_than_int32_counts(
    backend: str, seed: int, untouched_memory: None
) -> None:
    # 2³¹ + 64 elements that are never touched: memory is committed a page at a time.
    apart = 2**31 + 64
    storage = torch.empty(apart + 4 * 64, dtype=torch.bfloat16)
    far = [storage.as_strided((2, 64), (apart, 1), 64 * i).normal_() for i in range(4)]
    labels, results = torch.tensor([1, 0]), []
    for place, tensors in ((backend, far), ("reference", [x.clone() for x in far])):
        *leaves, grad_features = tensors
        assert place == "reference" or all(x.stride() == (apart, 1) for x in tensors)
        leaves = [x.detach().requires_grad_() for x in leaves]
        features, loss = ndfast.attach_nd_loss(*leaves, labels, backend=place)
        upstream = (grad_features, torch.tensor(2.0))
        grads = torch.autograd.grad((features, loss), leaves, upstream)
        (alone,) = torch.autograd.grad(ndfast.nd_loss(*leaves, labels, backend=place), leaves[0])
        results.append((loss.detach(), alone, *grads))
    torch.testing.assert_close(*results)


@pytest.mark.skipif(native.unusable(torch.device("cpu")) is not None, reason="not built")
def test_more_than_int32_elements(backend: str, seed: int, untouched_memory: None) -> None:
    if backend != "native":
        pytest.skip("the interpreter and the reference would take minutes for 2³¹ elements")
    N, D = 2**15 + 1, 2**16
    student = torch.ones(1, D, dtype=torch.bfloat16).expand(N, D).requires_grad_()
    class_means, labels = torch.ones(1, D), torch.zeros(N, dtype=torch.uint8)
    class_means[0, : D // 2] = 0
    loss = ndfast.nd_loss(student, None, class_means, labels, backend=backend)
    # ⟨s, c⟩ = D/2, ‖c‖ = √(D/2), ‖s‖ = √D
    assert loss.item() == pytest.approx(1 - math.sqrt(0.5), rel=1e-5)
    (grad,) = torch.autograd.grad(loss, student)
    last, first = grad[-1, -1].item(), grad[0, 0].item()
    m, n_c, p = math.sqrt(D), math.sqrt(D / 2), math.sqrt(D / 2)
    assert first == pytest.approx(p / m**3 / N, rel=4e-3)
    assert last == pytest.approx((-1 / (n_c * m) + p / m**3) / N, rel=4e-3)
