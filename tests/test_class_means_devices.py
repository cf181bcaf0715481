"""ClassMeans sums in float64 wherever the features are, and its copies are its numbers alone."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from stand_in_device import REFUSALS, StandIn
from torch import Tensor

from ndfast.class_means import ClassMeans

K, D = 5, 16


def draw(N: int) -> tuple[Tensor, Tensor]:
    """Features far from zero, and labels of every class."""
    labels = torch.randint(K, (N,))
    labels[:K] = torch.arange(K)
    return torch.randn(N, D) + 100, labels


def means_in_float64(features: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([features[labels == k].double().mean(dim=0) for k in range(K)])


@pytest.fixture(params=["mps", "xpu"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One without float64."""
    monkeypatch.setattr(torch.xpu, "_lazy_init", lambda: None)  # else: not compiled with it
    with StandIn(request.param):
        yield f"{request.param}:0"


def test_the_stand_in_refuses_float64(device: str) -> None:
    refusal = REFUSALS[device[:3]]
    features, labels = torch.ones(2, 1).to(device), torch.zeros(2, dtype=torch.int64).to(device)
    assert features.device == labels.device == torch.device(device)
    with pytest.raises(type(refusal)):
        features.double()
    with pytest.raises(type(refusal)):
        torch.zeros(1, dtype=torch.float64, device=device).add_(1)
    with pytest.raises(RuntimeError, match="same device"):
        torch.zeros(1, 1).index_add_(0, labels, features)
    assert (features + 1).cpu().tolist() == [[2], [2]]


@pytest.mark.parametrize("named", [False, True], ids=["the first batch's", "a named one"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_device_without_float64_leaves_the_sums_to_the_cpu(
    dtype: torch.dtype, named: bool, device: str, seed: int
) -> None:
    features, labels = draw(40)
    features = features.to(dtype)
    means = ClassMeans(K, D, device=device if named else None)
    for rows in torch.arange(40).split([3, 0, 37]):
        means.update(features[rows].to(device), labels[rows].to(device))
    got = means.compute(torch.float64, expected_count=40)
    assert got.device.type == means.counts.device.type == "cpu"
    torch.testing.assert_close(got, means_in_float64(features, labels), rtol=1e-13, atol=0)


def test_pooled_features_and_labels_of_the_cpu(device: str, seed: int) -> None:
    features, labels = draw(20)
    means = ClassMeans(K, D)
    means.update(features[:, :, None, None].to(device), labels.int())
    got = means.compute(torch.float64)
    torch.testing.assert_close(got, means_in_float64(features, labels), rtol=1e-13, atol=0)


def test_a_label_out_of_range_is_seen_where_the_sums_are_on_the_cpu(device: str) -> None:
    means = ClassMeans(K, D)
    with pytest.raises(IndexError, match="labels: class 5 in row 1 is out of bounds"):
        means.update(torch.ones(2, D).to(device), torch.tensor([0, K]).to(device))
    assert means.counts.sum() == 0


def test_a_named_device_without_float64_before_the_first_batch(device: str) -> None:
    assert ClassMeans(K, D, device=device).counts.tolist() == [0] * K


def test_a_default_dtype_of_float64(device: str) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        means = ClassMeans(1, 1)
        means.update(torch.ones(2, 1, dtype=torch.float32).to(device), torch.tensor([0, 0]))
        assert means.compute().item() == 1
    finally:
        torch.set_default_dtype(before)


def test_a_default_device_changes_nothing() -> None:
    features, labels = torch.ones(2, 1), torch.tensor([0, 0])
    with torch.device("meta"):
        means = ClassMeans(1, 1)
        means.update(features, labels)
        means = copy.deepcopy(means)
        means.update(features, labels)
        assert means.compute(expected_count=4).item() == 1


def test_a_device_with_float64_keeps_the_sums() -> None:
    """PyTorch's device "meta" has every dtype."""
    assert ClassMeans(K, D, device="meta").counts.device.type == "meta"
    means = ClassMeans(K, D)
    means.update(torch.ones(2, D, device="meta"), torch.tensor([0, 1]))
    assert means.counts.device.type == "meta"


def test_a_device_that_is_not_there_is_no_device_without_float64() -> None:
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises((AssertionError, RuntimeError)):
        ClassMeans(K, D, device=missing)


def through_torch_save(means: ClassMeans, **how: object) -> ClassMeans:
    file = io.BytesIO()
    torch.save(means, file)
    file.seek(0)
    return torch.load(file, weights_only=False, **how)  # type: ignore[arg-type]


COPIES = {
    "pickle": lambda means: pickle.loads(pickle.dumps(means)),
    "pickle 2": lambda means: pickle.loads(pickle.dumps(means, protocol=2)),
    "deepcopy": copy.deepcopy,
    "torch.save": through_torch_save,
}


@pytest.fixture(params=COPIES)
def make_copy(request: pytest.FixtureRequest) -> Callable[[ClassMeans], ClassMeans]:
    return COPIES[request.param]


def test_a_copy_goes_on_by_itself(make_copy: Callable[[ClassMeans], ClassMeans], seed: int) -> None:
    features, labels = draw(60)
    means = ClassMeans(K, D, ignore_index=255)
    assert make_copy(means).counts.tolist() == [0] * K
    means.update(features[:20], labels[:20])
    means.all_reduce()
    means.update(features[20:30], labels[20:30])
    kept = means.compute(torch.float64)
    other = make_copy(means)
    assert torch.equal(other.compute(torch.float64, expected_count=30), kept)

    other.update(features[30:], labels[30:])
    other.update(features[:1], torch.tensor([255]))
    other.all_reduce()
    assert torch.equal(means.compute(torch.float64, expected_count=30), kept)
    got = other.compute(torch.float64, expected_count=60)
    torch.testing.assert_close(got, means_in_float64(features, labels), rtol=1e-13, atol=0)


def test_a_copy_made_in_inference_mode_is_none_of_it(
    make_copy: Callable[[ClassMeans], ClassMeans],
) -> None:
    means = ClassMeans(1, 1)
    with torch.inference_mode():
        means.update(torch.ones(1, 1), torch.tensor([0]))
        means.all_reduce()
        means.update(torch.ones(1, 1), torch.tensor([0]))
        other = make_copy(means)
    for one in (means, other):
        one.update(torch.full((1, 1), 4.0), torch.tensor([0]))
        one.all_reduce()
        assert one.compute(expected_count=3).item() == 2


def test_a_pickle_is_its_numbers() -> None:
    means = ClassMeans(K, D)
    assert len(pickle.dumps(means)) < 500
    means.update(torch.ones(K, D), torch.arange(K))
    numbers = 8 * (K + 2) * (D + 1)  # 952 bytes
    assert numbers < len(pickle.dumps(means)) < numbers + 500
    means.all_reduce()
    assert numbers < len(pickle.dumps(means)) < numbers + 500


def test_a_copy_goes_where_its_next_batch_is() -> None:
    """The device "meta" stands for another machine's GPU."""
    means = ClassMeans(K, D)
    means.update(torch.ones(K, D), torch.arange(K))
    means._shared, means._local = means._local, None  # as all_reduce leaves them
    means.update(torch.ones(K, D), torch.arange(K))
    other = copy.deepcopy(means)
    assert other.counts.tolist() == [2] * K
    other.update(torch.ones(K, D, device="meta"), torch.arange(K))
    assert other.counts.device.type == "meta"
    assert other._shared is not None
    assert other._shared.device.type == "meta"
    named = copy.deepcopy(ClassMeans(K, D, device="meta"))
    named.update(torch.ones(K, D), torch.arange(K))
    assert named.counts.device.type == "meta"


def add_as_child(rank: int, means: ClassMeans) -> None:
    means.update(torch.full((1, 1), 10.0), torch.tensor([0]))
    assert means.compute(expected_count=2).item() == 5.5


def test_processes_that_get_it_share_no_sums() -> None:
    means = ClassMeans(1, 1)
    means.update(torch.ones(1, 1), torch.tensor([0]))
    torch.multiprocessing.spawn(add_as_child, (means,))
    assert means.compute(expected_count=1).item() == 1
