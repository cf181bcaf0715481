"""A count that is not the data set's is an error where it is asked to be one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

from ndfast.class_means import ClassMeans

FEATURES, LABELS = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1, 1])
DATASET = TensorDataset(FEATURES, LABELS)
MEANS = [[1.5], [4.0]]


def five_rows() -> ClassMeans:
    means = ClassMeans(2, 1)
    means.update(FEATURES, LABELS)
    return means


def by_all_reduce(means: ClassMeans, expected_count: object) -> None:
    means.all_reduce(expected_count=expected_count)  # type: ignore[arg-type]


def by_compute(means: ClassMeans, expected_count: object) -> None:
    means.compute(expected_count=expected_count)  # type: ignore[arg-type]


Check = Callable[[ClassMeans, object], None]


@pytest.fixture(params=[by_all_reduce, by_compute], ids=["all_reduce", "compute"])
def check(request: pytest.FixtureRequest) -> Check:
    """Either method, in a single process."""
    return request.param


@pytest.mark.parametrize("count", [5, np.int64(5)])
def test_the_data_set_s_count(count: int) -> None:
    means = five_rows()
    means.all_reduce(expected_count=count)
    assert means.compute(expected_count=count).tolist() == MEANS


@pytest.mark.parametrize(
    ("count", "why"), [(4, "came twice, as by a sampler that pads"), (0, "twice"), (6, "missing")]
)
def test_another_count_loses_nothing(check: Check, count: int, why: str) -> None:
    means = five_rows()
    with pytest.raises(
        ValueError, match=rf"^expected_count: got 5 rows; expected {count}: .*{why}"
    ):
        check(means, count)
    assert means.compute(expected_count=5).tolist() == MEANS
    means.update(torch.tensor([[4.5]]), torch.tensor([0]))
    check(means, 6)
    assert means.compute().tolist() == [[2.5], [4.0]]


def test_a_pass_too_many_and_a_last_batch_left_out(check: Check) -> None:
    means = ClassMeans(2, 1)
    for _ in range(2):
        for features, labels in DataLoader(DATASET, batch_size=2, drop_last=True):
            means.update(features, labels)
        with pytest.raises(ValueError, match=r"got [48] rows; expected 5"):
            check(means, len(DATASET))


def test_ignored_rows_are_not_in_it_and_are_told(check: Check) -> None:
    means = five_rows()
    means.update(FEATURES[:2], torch.tensor([-100, -100]))
    check(means, 5)
    with pytest.raises(ValueError, match=r"got 5 rows and 2 ignored; expected 7: some are missing"):
        check(means, 7)


def test_the_count_is_told_before_unseen_classes() -> None:
    means = ClassMeans(3, 1)
    with pytest.raises(ValueError, match="expected_count: got 0 rows; expected 5"):
        means.compute(expected_count=5)
    with pytest.raises(ValueError, match="never seen, of 3: 0, 1, 2"):
        means.compute(expected_count=0)


@pytest.mark.parametrize("count", [5.0, "5", True, torch.tensor(5), [5]])
def test_what_is_no_count(check: Check, count: object) -> None:
    name = type(count).__name__
    with pytest.raises(TypeError, match=rf"^expected_count: got {name}; expected an int$"):
        check(five_rows(), count)


def test_a_negative_count(check: Check) -> None:
    with pytest.raises(ValueError, match=r"^expected_count: got -1; expected 0 or more$"):
        check(five_rows(), -1)


@pytest.mark.long
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes(tmp_path) -> None:
    torch.multiprocessing.spawn(share_as_rank, (str(tmp_path / "store"),), nprocs=2)


def share_as_rank(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

    padding = DistributedSampler(DATASET, shuffle=False)
    means = take(DataLoader(DATASET, batch_size=2, sampler=padding))
    with pytest.raises(ValueError, match=r"got 3 rows; expected 5: .*before all_reduce"):
        means.compute(expected_count=len(DATASET))
    with pytest.raises(ValueError, match=r"got 6 rows; expected 5: .*DistributedSampler"):
        means.all_reduce(expected_count=len(DATASET))  # on both, and neither waits
    assert means.counts.tolist() == [3, 3]
    with pytest.raises(ValueError, match="got 6 rows; expected 5"):
        means.compute(expected_count=len(DATASET))
    assert means.compute(expected_count=6).flatten().tolist() == pytest.approx([4 / 3, 4])

    # Nothing is lost: updates go on, and what was reduced is not sent again.
    if rank == 1:
        means.update(torch.tensor([[2.0]]), torch.tensor([0]))
    means.all_reduce(expected_count=7)
    assert means.compute(expected_count=7).tolist() == MEANS

    # A sampler that does not pad: three batches here, and two there.
    own = Subset(DATASET, range(rank, len(DATASET), dist.get_world_size()))
    means = take(DataLoader(own, batch_size=1))
    means.all_reduce(expected_count=len(DATASET))
    assert means.compute(expected_count=len(DATASET)).tolist() == MEANS

    means = take(DataLoader(DATASET, batch_size=5))  # each took all
    with pytest.raises(ValueError, match=r"got 10 rows; expected 5: .*took the whole data set"):
        means.all_reduce(expected_count=len(DATASET))
    dist.barrier()
    dist.destroy_process_group()


def take(loader: DataLoader) -> ClassMeans:
    means = ClassMeans(2, 1)
    for features, labels in loader:
        means.update(features, labels)
    return means


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_label_out_of_range_on_a_gpu_is_told_first(check: Check) -> None:
    means = ClassMeans(2, 1)
    means.update(FEATURES.cuda(), torch.tensor([0, 0, 1, 1, 2]).cuda())
    with pytest.raises(IndexError, match="1 rows had a class out of bounds for 2 classes"):
        check(means, 5)
