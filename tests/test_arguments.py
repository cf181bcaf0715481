"""Every wrong argument: the type of the error, and that its sentence names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ndfast

S = torch.randn(4, 6)
C = torch.randn(3, 6)
Y = torch.tensor([0, 1, 2, 0])
META = {"device": "meta"}


def grad(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, requires_grad=True)


def mix(a: Any = Y, b: Any = Y, lam: Any = 0.5) -> dict[str, Any]:
    return {"target": ndfast.Mix(a, b, lam)}


WRONG = [
    # argument that the message must begin with, error, what is wrong
    ("student", TypeError, {"student": [[1.0]]}),
    ("student", TypeError, {"student": S.long()}),
    ("student", TypeError, {"student": S.to(torch.complex64)}),
    ("student", TypeError, {"student": S.to_sparse()}),
    ("student", ValueError, {"student": S[0]}),
    ("student", ValueError, {"student": S[:, :0]}),
    ("teacher", TypeError, {"teacher": S.numpy()}),
    ("teacher", TypeError, {"teacher": S.int()}),
    ("teacher", ValueError, {"teacher": S[:3]}),
    ("teacher", ValueError, {"teacher": S[:, :5]}),
    ("teacher", ValueError, {"teacher": S[:3, 0]}),
    ("teacher", ValueError, {"teacher": S.to(**META)}),
    ("teacher", ValueError, {"teacher": grad(4)}),
    ("class_means", TypeError, {"class_means": {"0": [1.0]}}),
    ("class_means", TypeError, {"class_means": C.int()}),
    ("class_means", TypeError, {"class_means": C.to_sparse_csr()}),
    ("class_means", ValueError, {"class_means": C[0]}),
    ("class_means", ValueError, {"class_means": C[:0]}),
    ("class_means", ValueError, {"class_means": C[:, :5]}),
    ("class_means", ValueError, {"class_means": C.to(**META)}),
    ("class_means", ValueError, {"class_means": C, "target": None}),
    ("target", TypeError, {"target": [0, 1, 2, 0]}),
    ("target", TypeError, {"target": Y.bool()}),
    ("target", TypeError, {"target": Y.short()}),
    ("target", ValueError, {"target": Y[:3]}),
    ("target", ValueError, {"target": Y[:, None]}),
    ("target", ValueError, {"target": Y.to(**META)}),
    ("target", IndexError, {"target": Y + 1}),
    ("target", IndexError, {"target": Y - 1}),
    ("target", IndexError, {"target": torch.tensor([0, 1, 2, -100]), "ignore_index": 255}),
    ("target.target_a", IndexError, mix(a=Y + 1)),
    ("target.target_b", IndexError, mix(b=Y + 1)),
    ("target.target_a", TypeError, mix(a=Y.float())),
    ("target.target_b", ValueError, mix(b=Y[:3])),
    ("target.lam", TypeError, mix(lam="0.5")),
    ("target.lam", TypeError, mix(lam=torch.ones(4, dtype=torch.int64))),
    ("target.lam", ValueError, mix(lam=1.5)),
    ("target.lam", ValueError, mix(lam=float("nan"))),
    ("target.lam", ValueError, mix(lam=torch.rand(3))),
    ("target.lam", ValueError, mix(lam=grad(4))),
    ("target", ValueError, {"target": torch.rand(4, 2)}),
    ("target", ValueError, {"target": torch.rand(4)}),
    ("target", ValueError, {"target": grad(4, 3)}),
    ("weight", TypeError, {"weight": "2"}),
    ("weight", TypeError, {"weight": torch.tensor(2.0)}),
    ("weight", ValueError, {"weight": 10**400}),
    ("eps", ValueError, {"eps": -(10**400)}),
    ("target.lam", ValueError, {**mix(lam=torch.tensor([0.1, 1.0, 1.5, 2.0])), "validate": True}),
    ("target.lam", ValueError, {**mix(lam=torch.tensor(torch.nan)), "validate": True}),
    ("target.lam", ValueError, mix(lam=torch.rand(4, **META))),
    ("target.target_b", ValueError, mix(b=Y.to(**META))),
    ("target", ValueError, {"target": torch.rand(4, 3, **META)}),
    ("sample_weight", ValueError, {"sample_weight": torch.rand(4, **META)}),
    ("sample_weight", TypeError, {"sample_weight": [1.0] * 4}),
    ("sample_weight", TypeError, {"sample_weight": Y}),
    ("sample_weight", ValueError, {"sample_weight": torch.rand(3)}),
    ("sample_weight", ValueError, {"sample_weight": torch.rand(4, 1)}),
    ("sample_weight", ValueError, {"sample_weight": grad(4)}),
    ("reduction", ValueError, {"reduction": "avg"}),
    ("reduction", ValueError, {"reduction": None}),
    ("reduction", ValueError, {"reduction": ["mean"]}),
    ("ignore_index", TypeError, {"ignore_index": None}),
    ("ignore_index", TypeError, {"ignore_index": 1.0}),
    ("ignore_index", ValueError, {"ignore_index": 2**63}),
    ("eps", ValueError, {"eps": -1e-8}),
    ("eps", ValueError, {"eps": float("nan")}),
    ("eps", ValueError, {"eps": 2.0**-127}),  # 1 / eps may be too large for float32
    ("eps", TypeError, {"eps": "small"}),
    ("backend", ValueError, {"backend": "fastest"}),
]


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize(("argument", "error", "wrong"), WRONG)
def test_wrong_argument(argument: str, error: type, wrong: dict[str, Any], backend: str) -> None:
    arguments = {
        "student": S, "teacher": S, "class_means": C, "target": Y, "backend": backend, **wrong
    }  # fmt: skip
    with pytest.raises(error) as raised:
        ndfast.nd_loss(**arguments)
    assert str(raised.value).startswith(f"{argument}:"), str(raised.value)


def test_messages_say_what_was_got_and_what_is_taken() -> None:
    with pytest.raises(ValueError, match=r"class_means: got shape \[3, 5\].*expected \[K, 6\]"):
        ndfast.nd_loss(S, S, C[:, :5], Y)
    with pytest.raises(IndexError, match=r"target: class 3 in row 2 is out of bounds .* 3 classes"):
        ndfast.nd_loss(S, S, C, Y + 1)
    with pytest.raises(ValueError, match=r"'avg' is not a valid value.*'none', 'mean' or 'sum'"):
        ndfast.nd_loss(S, S, C, Y, reduction="avg")


def test_a_share_out_of_range_is_named_by_its_row() -> None:
    shares = torch.tensor([0.0, 1.0, 1.5, -1.0])
    with pytest.raises(ValueError, match=r"target\.lam: got 1\.5 in row 2"):
        ndfast.nd_loss(S, S, C, ndfast.Mix(Y, Y, shares), validate=True)


def test_numbers_of_numpy() -> None:
    options = {"weight": np.float32(2), "eps": np.float64(1e-8), "ignore_index": np.int64(2)}
    expected = ndfast.nd_loss(S, S, C, Y, weight=2.0, ignore_index=2)
    assert ndfast.nd_loss(S, S, C, Y, **options) == expected
    mixed = [ndfast.Mix(Y, Y.flip(0), share) for share in (0.25, np.float32(0.25))]
    assert ndfast.nd_loss(S, S, C, mixed[0]) == ndfast.nd_loss(S, S, C, mixed[1])
    assert mixed[0] != mixed[1]  # a comparison of their tensors would raise


def test_a_centre_a_row_beside_pooled_features() -> None:
    expected = ndfast.nd_loss(S, S, C[Y], None)
    pooled = S[:, :, None, None]
    for centres in (C[Y], C[Y][:, :, None, None]):
        assert ndfast.nd_loss(pooled, pooled, centres, None) == expected
    with pytest.raises(ValueError, match="class_means: got shape"):  # whose rows are [4, 2]
        ndfast.nd_loss(torch.randn(4, 6, 2), None, torch.randn(4, 2, 6), None)


@pytest.mark.parametrize("target", [Y, mix(), torch.rand(4, 3)], ids=["indices", "mix", "shares"])
def test_shapes_alone(target: Any) -> None:
    target = target["target"] if isinstance(target, dict) else target
    if isinstance(target, ndfast.Mix):
        target = ndfast.Mix(Y.to(**META), Y.to(**META), 0.5)
    else:
        target = target.to(**META)
    loss = ndfast.nd_loss(S.to(**META), None, C.to(**META), target, reduction="none")
    assert (loss.shape, loss.device.type) == ((4,), "meta")


def test_label_types_that_are_taken() -> None:
    expected = ndfast.nd_loss(S, S, C, Y)
    for dtype in (torch.int32, torch.uint8):
        torch.testing.assert_close(ndfast.nd_loss(S, S, C, Y.to(dtype)), expected)
    ignored = torch.tensor([0, 1, 255, 0], dtype=torch.uint8)
    kept = [0, 1, 3]
    torch.testing.assert_close(
        ndfast.nd_loss(S, S, C, ignored, ignore_index=255),
        ndfast.nd_loss(S[kept], S[kept], C, Y[kept]),
    )


def test_module_arguments() -> None:
    with pytest.raises(TypeError, match="class_means: got list"):
        ndfast.NDLoss([[1.0]])
    with pytest.raises(TypeError, match=r"class_means: got torch\.int64"):
        ndfast.NDLoss(C.long())
    with pytest.raises(ValueError, match=r"class_means: got shape \[6\]"):
        ndfast.NDLoss(C[0])
