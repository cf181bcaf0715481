"""Mixup and cutmix: what is mixed with what, by how much, and what is drawn for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ndfast
from ndfast.train.data.mixing import Mixer
from ndfast.train.errors import ConfigError


class StubRng:
    """Draws what it is told to, and notes what it is asked."""

    def __init__(self, lam: float, centre: tuple[int, ...] = (), odds: float | None = None) -> None:
        self.lam, self.centre, self.odds = lam, list(centre), odds
        self.asked: list[tuple[float, ...]] = []

    def beta(self, a: float, b: float) -> float:
        self.asked.append((a, b))
        return self.lam

    def integers(self, high: int) -> int:
        self.asked.append((high,))
        return self.centre.pop(0)

    def random(self) -> float:
        assert self.odds is not None, "one of the two alone needs no odds"
        return self.odds


def mix(mixer: Mixer, images: Tensor, labels: Tensor, rng: Any) -> tuple[Tensor, ndfast.Mix]:
    before = images.clone(), labels.clone()
    mixed, targets = mixer(images, labels, rng)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert (mixed.shape, mixed.dtype) == (images.shape, images.dtype)
    assert isinstance(targets.lam, Tensor)
    assert (targets.lam.shape, targets.lam.dtype) == ((), torch.float32)
    assert targets.target_a.tolist() == labels.tolist()
    assert targets.target_b.tolist() == labels.tolist()[::-1]
    return mixed, targets


@pytest.mark.parametrize("shape", [(3, 1, 2, 2), (3, 1, 4)])
def test_mixup_by_hand(shape: tuple[int, ...]) -> None:
    images = torch.tensor([0.0, 8.0, 4.0]).reshape(3, *[1] * (len(shape) - 1)).expand(shape)
    rng = StubRng(0.75)
    mixed, targets = mix(Mixer(0.2, 0), images, torch.tensor([5, 6, 7]), rng)
    # 0.75 of the image, 0.25 of the one from the other end; the middle one is its own partner.
    assert mixed.flatten(1).tolist() == [[1.0] * 4, [8.0] * 4, [3.0] * 4]
    assert targets.lam == 0.75
    assert rng.asked == [(0.2, 0.2)]


@pytest.mark.parametrize(
    ("lam", "centre", "rows", "columns"),
    [
        # A box of 0.5·4 by 0.5·8 within; its first pixel is half a side before the centre.
        (0.75, (2, 3), (1, 3), (1, 5)),
        # Cut off at the first corner and at the last.
        (0.75, (0, 0), (0, 1), (0, 2)),
        (0.75, (3, 7), (2, 4), (5, 8)),
        # Sides that are no whole numbers: (1 - 0.19)^½ = 0.9, of 4 and of 8: 4 and 7.
        (0.19, (2, 3), (0, 4), (0, 7)),
        (1.0, (2, 3), (2, 2), (3, 3)),
        (0.0, (2, 4), (0, 4), (0, 8)),
    ],
)
def test_cutmix_by_hand(
    lam: float, centre: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    images = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1).repeat(1, 3, 4, 8)
    rng = StubRng(lam, centre)
    mixed, targets = mix(Mixer(0, 1.0), images, torch.tensor([3, 4]), rng)
    expected = images.clone()
    expected[0, :, rows[0] : rows[1], columns[0] : columns[1]] = 2.0
    expected[1, :, rows[0] : rows[1], columns[0] : columns[1]] = 1.0
    assert torch.equal(mixed, expected)
    area = (rows[1] - rows[0]) * (columns[1] - columns[0])
    assert targets.lam == 1 - area / 32  # what is seen, not what was drawn
    assert rng.asked == [(1.0, 1.0), (4,), (8,)]


def test_cutmix_of_signals_cuts_a_stretch() -> None:
    signals = torch.tensor([1.0, 2.0]).reshape(2, 1, 1).repeat(1, 2, 8)
    mixed, targets = mix(Mixer(0, 1.0), signals, torch.tensor([3, 4]), StubRng(0.75, (4,)))
    assert mixed[0].tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0]] * 2
    assert targets.lam == 0.75


@pytest.mark.parametrize(("odds", "alpha"), [(0.49, 1.0), (0.5, 0.2)])
def test_with_both_one_is_drawn(odds: float, alpha: float) -> None:
    images = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1).repeat(1, 3, 4, 4)
    rng = StubRng(0.75, (2, 2), odds)
    mixed, _ = mix(Mixer(0.2, 1.0), images, torch.tensor([3, 4]), rng)
    assert rng.asked[0] == (alpha, alpha)
    assert sorted(mixed[0].unique().tolist()) == ([1.0, 2.0] if alpha == 1.0 else [1.25])


def test_the_generator_decides_everything(seed: int) -> None:
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6)
    state = torch.get_rng_state()
    mixer = Mixer(0.8, 1.0)
    found = [mix(mixer, images, labels, np.random.default_rng([seed, n])) for n in range(40)]
    again = [mix(mixer, images, labels, np.random.default_rng([seed, n])) for n in range(40)]
    for (mixed, targets), (mixed_again, targets_again) in zip(found, again, strict=True):
        assert torch.equal(mixed, mixed_again)
        assert torch.equal(targets.lam, targets_again.lam)
    assert len({targets.lam.item() for _, targets in found}) > 20
    assert torch.equal(torch.get_rng_state(), state)


def test_lam_follows_beta(seed: int) -> None:
    images, labels = torch.zeros(2, 1, 2), torch.tensor([0, 1])
    rng = np.random.default_rng(seed)
    mixer = Mixer(0.5, 0)
    drawn = torch.stack([mix(mixer, images, labels, rng)[1].lam for _ in range(4000)])
    # Beta(a, a): mean ½, variance 1 / (4·(2a + 1)) = 1/8; five sigma of 4,000 draws is 0.028.
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.028)
    assert drawn.var().item() == pytest.approx(0.125, abs=0.01)


@pytest.mark.parametrize("mixer", [Mixer(0.8, 0), Mixer(0, 1.0)])
def test_the_layout_is_kept(mixer: Mixer, seed: int) -> None:
    images = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    mixed, _ = mix(mixer, images, torch.arange(4), np.random.default_rng(seed))
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_the_loss_takes_the_labels(seed: int) -> None:
    mixed, targets = mix(
        Mixer(0.8, 0), torch.randn(4, 6, 1), torch.tensor([0, 1, 2, 0]), np.random.default_rng(seed)
    )
    student, means = mixed.flatten(1), torch.randn(3, 6)
    centres = targets.lam * means[targets.target_a] + (1 - targets.lam) * means[targets.target_b]
    torch.testing.assert_close(
        ndfast.nd_loss(student, None, means, targets, backend="reference"),
        ndfast.nd_loss(student, None, centres, None, backend="reference"),
    )


def test_neither_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^mixup and cutmix: got 0.0 and 0; one of them takes"):
        Mixer(0.0, 0)
