"""What holds for every backend of a GPU, checked on the CPU below the public function."""

from __future__ import annotations

from typing import Any

import torch

from ndfast.backends import reference


def check_labels_out_of_range(backend: Any, D: int, mixed: bool) -> None:
    """Such rows are NaN, and nothing is read there: 2^40 rows away the process would end.

    It is what nd_loss does on a GPU, where it cannot look.
    """
    student, teacher, class_means = torch.randn(6, D), torch.randn(6, D), torch.randn(3, D)
    labels = torch.tensor([0, 3, -1, 2, 2**40, -100])
    others = torch.tensor([1, 1, 1, -(2**40), 1, 1]) if mixed else None
    call = (student, teacher, class_means, labels, others, None, 0.25)
    forward = (*call, None, 1.0, reference.NONE, -100, 1e-8, 4, True)
    results, expected = backend.forward(*forward), reference.forward(*forward)
    bad = [1, 2, 3, 4] if mixed else [1, 2, 4]
    assert results[0].isnan().nonzero().flatten().tolist() == bad
    assert results[2].isnan().all(dim=1).nonzero().flatten().tolist() == bad
    upstream = torch.rand(6)
    for grad_features in (None, torch.randn(6, D)):
        needs = (grad_features, True, True, True)
        got = (*results, *backend.backward(upstream, results[1], *call, *needs))
        wanted = (*expected, *reference.backward(upstream, expected[1], *call, *needs))
        torch.testing.assert_close(got, wanted, equal_nan=True, rtol=1e-5, atol=1e-6)


def check_class_means_beside_bad_labels(backend: Any, D: int, mixed: bool, tens: int = 10) -> None:
    """Many labels that are no class, smaller and larger ones, add nothing to any class."""
    counts = tens * torch.tensor([60, 2, 53, 0, 55])
    N = int(counts.sum())
    student, class_means = torch.randn(N, D), torch.randn(3, D)
    labels = torch.tensor([-5, 0, 1, 2, 3]).repeat_interleave(counts)
    labels = labels[torch.randperm(N)]
    # Both of a row, for one of them makes the row's gradient NaN, and with it the other's class.
    others = torch.where((labels < 0) | (labels >= 3), 2**40, 1) if mixed else None
    call = (student, None, class_means, labels, others, None, 0.25)
    options = (None, 1.0, reference.SUM, -100, 1e-8, 4, False)
    _, saved, _ = backend.forward(*call, *options)
    arguments = (torch.ones(()), saved, *call, None, False, False, True)
    gradient, expected = (module.backward(*arguments)[2] for module in (backend, reference))
    torch.testing.assert_close(gradient, expected, equal_nan=True, rtol=1e-5, atol=1e-4)


def check_finished_gradient(
    backend: Any, D: int, upstream: float | list[float], written_for: float
) -> None:
    """Only the rows that were written for another upstream gradient are, whatever its shape."""
    student, class_means = torch.randn(4, D), torch.randn(3, D)
    call = (student, None, class_means, torch.tensor([0, 1, 2, 0]), None, None, 1.0)
    options = (None, 1.0, reference.NONE, -100, 1e-8, 4, False)
    _, saved, _ = backend.forward(*call, *options)
    gradient = torch.full_like(student, 7.0)  # no gradient: shows which rows were left alone
    factor = torch.tensor(upstream)
    rows = (factor, saved, student, *call[2:])
    backend.finish_gradient_(gradient, *rows, written_for)
    expected = torch.empty_like(student)
    reference.finish_gradient_(expected, *rows)
    expected[(factor == written_for).expand(4)] = 7.0
    torch.testing.assert_close(gradient, expected)
    if factor.dim() == 0:  # the same factor, one a row by its shape
        backend.finish_gradient_(gradient.fill_(7.0), factor.expand(4), *rows[1:], written_for)
        torch.testing.assert_close(gradient, expected)
