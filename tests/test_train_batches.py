"""Which rows make a batch: every one once, the same after an interruption, its own in a process."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from ndfast.train.data.batches import (
    Batch,
    EvaluationBatches,
    TrainingBatches,
    draw_views,
    load,
    mix_seeds,
)


class Recorder:
    """A dataset whose images are what it was asked for: row and view."""

    num_views = None

    def __len__(self) -> int:
        return 23

    def __getitems__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.views is not None
        images = torch.tensor([*zip(batch.indices, batch.views, strict=True)])
        return images, torch.tensor(batch.indices)


def epoch_of(
    seed: int,
    epoch: int,
    rank: int = 0,
    processes: int = 1,
    *,
    batch_size: int = 4,
    data_seed: int = 5,
) -> list[Batch]:
    batches = TrainingBatches(23, batch_size, seed, data_seed, rank, processes)
    batches.epoch = epoch
    return list(batches)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_epoch_takes_each_row_at_most_once(processes: int, seed: int) -> None:
    shares = [epoch_of(seed, 0, rank, processes) for rank in range(processes)]
    steps = 23 // (4 * processes)
    for rank, share in enumerate(shares):
        assert len(share) == len(TrainingBatches(23, 4, seed, 5, rank, processes)) == steps
        assert all(len(batch.indices) == 4 for batch in share)
    rows = [row for share in shares for batch in share for row in batch.indices]
    assert len(rows) == len(set(rows)) == 4 * processes * steps
    assert set(rows) <= set(range(23))
    # One order for all: a step of two processes has the rows of two steps of one.
    alone = [row for batch in epoch_of(seed, 0) for row in batch.indices]
    together = [
        row for step in zip(*shares, strict=True) for batch in step for row in batch.indices
    ]
    assert together == alone[: len(together)]


def test_epochs_and_seeds_differ_and_come_again() -> None:
    orders = {
        (seed, epoch): tuple(row for batch in epoch_of(seed, epoch) for row in batch.indices)
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == 16
    assert epoch_of(3, 2) == epoch_of(3, 2)


def views_by_row(batches: list[Batch]) -> dict[int, int]:
    assert all(batch.views is not None for batch in batches)
    return {
        row: view
        for batch in batches
        for row, view in zip(batch.indices, batch.views or (), strict=True)
    }


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_a_view_is_a_function_of_data_seed_epoch_and_row(
    processes: int, batch_size: int, seed: int
) -> None:
    for epoch in (0, 3):
        expected = dict(enumerate(draw_views(9, epoch, [*range(23)])))
        for rank in range(processes):
            batches = epoch_of(seed, epoch, rank, processes, batch_size=batch_size, data_seed=9)
            found = views_by_row(batches)
            assert found == {row: expected[row] for row in found}


def test_views_differ_across_data_seeds_epochs_and_rows() -> None:
    views = [
        view
        for data_seed in range(4)
        for epoch in range(4)
        for view in draw_views(data_seed, epoch, [*range(100)])
    ]
    assert len(views) == len(set(views)) == 1600
    assert all(0 <= view < 2**63 for view in views)
    assert draw_views(3, 2, []) == []


def test_the_remainders_of_views_are_even() -> None:
    """By 162 and by 2, as crops and flips take them: chi-squared of 162,000 of them."""
    views = np.array([draw_views(0, epoch, [*range(1620)]) for epoch in range(100)]).ravel()
    for count in (162, 2):
        observed = np.bincount(views % count, minlength=count)
        expected = len(views) / count
        chi_squared = ((observed - expected) ** 2 / expected).sum()
        assert chi_squared < count - 1 + 5 * (2 * (count - 1)) ** 0.5


def test_an_interrupted_epoch_goes_on_with_the_batches_it_would_have_had(seed: int) -> None:
    for rank in range(2):
        whole = epoch_of(seed, 5, rank, 2)
        batches = TrainingBatches(23, 4, seed, 5, rank, 2)
        batches.epoch, batches.start = 5, 1
        assert list(batches) == whole[1:]
        assert len(batches) == len(whole)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 12, 13, 23])
def test_evaluation_counts_each_row_once(rows: int, processes: int) -> None:
    shares = [EvaluationBatches(rows, 4, rank, processes) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert len({len(batch.indices) for share in shares for batch in share}) == 1
    counted: Counter[int] = Counter()
    for share in shares:
        assert len(list(share)) == len(share)
        for step, batch in enumerate(share):
            assert batch.views is None
            counted.update(batch.indices[: share.counted(step)])
            assert set(batch.indices[share.counted(step) :]) <= {0}
    assert counted == Counter(range(rows))


def test_evaluation_wastes_no_batch() -> None:
    # 5 rows in 2 processes: batches of 3, not of 100.
    batches = [list(EvaluationBatches(5, 100, rank, 2)) for rank in range(2)]
    assert [[batch.indices for batch in share] for share in batches] == [[[0, 1, 2]], [[3, 4, 0]]]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_augmented_evaluation_has_the_views_of_epoch_0(processes: int, seed: int) -> None:
    shares = [EvaluationBatches(23, 4, rank, processes, seed) for rank in range(processes)]
    found = views_by_row([batch for share in shares for batch in share])
    assert found == dict(enumerate(draw_views(seed, 0, [*range(23)])))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_what_the_sampler_asks_for(workers: int, seed: int) -> None:
    batches = TrainingBatches(23, 4, seed, 5, 0, 1)
    state = torch.get_rng_state()
    loaded = load(Recorder(), batches, workers, torch.device("cpu"))
    found = [(images.tolist(), labels.tolist()) for images, labels in loaded]
    expected = [
        ([[row, view] for row, view in views_by_row([batch]).items()], batch.indices)
        for batch in batches
    ]
    assert found == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_mix_seeds_tells_order_and_length_apart() -> None:
    # The first two outputs of splitmix64 from state 0, as its published test vectors have them,
    # cut to 63 bits.
    assert mix_seeds(0) == 0xE220A8397B1DCDAF % 2**63
    tuples = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (2**63 - 1,)]
    assert len({mix_seeds(*numbers) for numbers in tuples}) == len(tuples)


def test_views_stay_what_they_are() -> None:
    """What has been kept of a view is of use only as long as its number stays the same."""
    assert draw_views(7, 3, [0, 1, 49_999]) == [
        243800836748209808,
        944075450463690038,
        4077130720660612302,
    ]
