"""Which rows make a batch: every one once, the same after an interruption, its own in a process."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from ndfast.train.data.batches import (
    Batch,
    EvaluationBatches,
    TrainingBatches,
    load,
    mix_seeds,
)


class Recorder:
    """A dataset whose images are what it was asked for: row and seed, in float64's exact range."""

    augmented = True

    def __len__(self) -> int:
        return 23

    def __getitems__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images = torch.tensor([[row, batch.seed or 0] for row in batch.indices])
        return images, torch.tensor(batch.indices)


def epoch_of(seed: int, epoch: int, rank: int = 0, processes: int = 1) -> list[Batch]:
    batches = TrainingBatches(23, 4, seed, rank, processes)
    batches.epoch = epoch
    return list(batches)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_epoch_takes_each_row_at_most_once(processes: int, seed: int) -> None:
    shares = [epoch_of(seed, 0, rank, processes) for rank in range(processes)]
    steps = 23 // (4 * processes)
    for rank, share in enumerate(shares):
        assert len(share) == len(TrainingBatches(23, 4, seed, rank, processes)) == steps
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


def test_augmentation_seeds_differ_across_seeds_epochs_steps_and_ranks() -> None:
    seeds = [
        batch.seed
        for seed in range(3)
        for epoch in range(3)
        for rank in range(2)
        for batch in epoch_of(seed, epoch, rank, 2)
    ]
    assert len(seeds) == len(set(seeds)) == 3 * 3 * 2 * 2
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)


def test_an_interrupted_epoch_goes_on_with_the_batches_it_would_have_had(seed: int) -> None:
    for rank in range(2):
        whole = epoch_of(seed, 5, rank, 2)
        batches = TrainingBatches(23, 4, seed, rank, 2)
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
            assert batch.seed is None
            counted.update(batch.indices[: share.counted(step)])
            assert set(batch.indices[share.counted(step) :]) <= {0}
    assert counted == Counter(range(rows))


def test_evaluation_wastes_no_batch() -> None:
    # 5 rows in 2 processes: batches of 3, not of 100.
    batches = [list(EvaluationBatches(5, 100, rank, 2)) for rank in range(2)]
    assert [[batch.indices for batch in share] for share in batches] == [[[0, 1, 2]], [[3, 4, 0]]]


def test_augmented_evaluation_has_its_own_seed_for_each_batch() -> None:
    seeds = [
        batch.seed
        for seed in range(2)
        for rank in range(2)
        for batch in EvaluationBatches(23, 4, rank, 2, seed)
    ]
    assert len(seeds) == len(set(seeds)) == 2 * 2 * 3


@pytest.mark.parametrize("rows", [3, 23])
def test_a_row_is_augmented_alike_in_however_many_processes(rows: int) -> None:
    def augmented_rows(processes: int) -> dict[int, tuple[Batch, int]]:
        shares = [EvaluationBatches(rows, 4, rank, processes, 7) for rank in range(processes)]
        return {
            row: (batch, place)
            for share in shares
            for step, batch in enumerate(share)
            for place, row in enumerate(batch.indices[: share.counted(step)])
        }

    alone = augmented_rows(1)
    assert sorted(alone) == list(range(rows))
    assert augmented_rows(2) == augmented_rows(3) == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_what_the_sampler_asks_for(workers: int, seed: int) -> None:
    batches = TrainingBatches(23, 4, seed, 0, 1)
    state = torch.get_rng_state()
    loaded = load(Recorder(), batches, workers, torch.device("cpu"))
    found = [(images.tolist(), labels.tolist()) for images, labels in loaded]
    expected = [([[row, batch.seed] for row in batch.indices], batch.indices) for batch in batches]
    assert found == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_mix_seeds_tells_order_and_length_apart() -> None:
    # The first two outputs of splitmix64 from state 0, as its published test vectors have them,
    # cut to 63 bits.
    assert mix_seeds(0) == 0xE220A8397B1DCDAF % 2**63
    tuples = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (2**63 - 1,)]
    assert len({mix_seeds(*numbers) for numbers in tuples}) == len(tuples)
