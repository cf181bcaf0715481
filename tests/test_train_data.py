"""The data sets: what is made, how it is augmented and normalised, which names are refused."""

from __future__ import annotations

import hashlib
import pickle
import random
import socket
from typing import Any

import numpy as np
import pytest
import torch
from whole_dataset import all_rows

from ndfast.train.data import DATA, build_data
from ndfast.train.data.archives import Arrays
from ndfast.train.data.arrays import NUM_VIEWS, ArrayDataset, crop_and_flip
from ndfast.train.data.batches import Batch, TrainingBatches, load
from ndfast.train.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "package", "sizes", "image_shape", "first_labels"),
    [
        ("digits", "sklearn.model_selection", (359, 1438), (1, 8, 8), [9, 7, 9, 0, 3, 4]),
        ("mnist1d", "mnist1d", (4000, 1000), (1, 40), [2, 6, 4, 5, 6, 6]),
    ],
)
def test_what_needs_no_files_needs_no_network_and_keeps_the_generators(
    name: str,
    package: str,
    sizes: tuple[int, int],
    image_shape: tuple[int, ...],
    first_labels: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(package, reason="needs the extra [train]")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    states = random.getstate(), np.random.get_state()[1].tolist()
    data = build_data(name)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    assert (len(data.train), len(data.test)) == sizes
    assert (data.name, data.num_classes, data.image_shape) == (name, 10, image_shape)
    images, labels = all_rows(data.train)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.shape == (sizes[0], *image_shape)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    assert sorted(set(labels.tolist())) == list(range(10))
    assert labels[:6].tolist() == first_labels  # always the same split and seed
    augmented, _ = all_rows(data.train, seed=1)
    assert torch.equal(augmented, images)


def test_crop_and_flip_by_hand() -> None:
    # Each pixel is its own place, 10·row + column + 1, and in the second channel 100 more.
    place = 10 * np.arange(5)[:, None] + np.arange(6)[None] + 1
    image = np.stack([place, place + 100]).astype(np.uint8)
    images = np.stack([image] * 4)
    # Offset 4 is the image itself; 3 down shows one row of the border on top.
    flipped, top, left = np.array([0, 0, 1, 0]), np.array([4, 3, 4, 0]), np.array([4, 4, 6, 8])
    before = images.copy()
    found = crop_and_flip(images, (flipped * 9 + top) * 9 + left)
    assert found.dtype == np.uint8
    assert np.array_equal(images, before)
    assert np.array_equal(found[0], image)
    assert found[1, 0].tolist() == [
        [0, 0, 0, 0, 0, 0],
        [1, 2, 3, 4, 5, 6],
        [11, 12, 13, 14, 15, 16],
        [21, 22, 23, 24, 25, 26],
        [31, 32, 33, 34, 35, 36],
    ]
    # Two to the right, and flipped.
    assert found[2, 0, 0].tolist() == [0, 0, 6, 5, 4, 3]
    assert found[2, 1, 4].tolist() == [0, 0, 146, 145, 144, 143]
    # The corner: four up, four to the right.
    assert found[3, 0].tolist() == [[0] * 6] * 4 + [[5, 6, 0, 0, 0, 0]]


def test_every_view_is_another_image() -> None:
    place = np.arange(1, 26, dtype=np.uint8).reshape(1, 1, 5, 5)
    found = crop_and_flip(np.repeat(place, NUM_VIEWS, axis=0), np.arange(NUM_VIEWS))
    assert NUM_VIEWS == 2 * 9 * 9
    assert len({image.tobytes() for image in found}) == NUM_VIEWS
    # Each is a shift by at most 4 of the image or, in the second half, of its mirror image.
    padded = np.pad(place[0, 0], 4)
    shifts = [padded[top : top + 5, left : left + 5] for top in range(9) for left in range(9)]
    for view, image in enumerate(found[:, 0]):
        expected = shifts[view % 81]
        assert np.array_equal(image, expected[:, ::-1] if view >= 81 else expected)


def test_normalisation_by_hand() -> None:
    images = np.array([[[[0, 255]], [[51, 102]]]], dtype=np.uint8)  # [1, 2, 1, 2]
    mean, std = np.array([127.5, 51.0]), np.array([51.0, 25.5])
    dataset = ArrayDataset(Arrays(images, np.array([3])), mean, std)
    found, labels = all_rows(dataset)
    assert found.tolist() == [[[[-2.5, 2.5]], [[0.0, 2.0]]]]
    assert labels.tolist() == [3]
    assert images.tolist() == [[[[0, 255]], [[51, 102]]]]


def test_a_row_and_its_view_alone_decide_the_image(seed: int) -> None:
    images = np.random.default_rng(seed).integers(256, size=(50, 3, 9, 7), dtype=np.uint8)
    arrays = Arrays(images, np.arange(50))
    train = ArrayDataset(arrays, np.zeros(3), np.ones(3), augmented=True)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    batches = TrainingBatches(len(train), 8, seed, seed, 0, 1)
    expected = all_rows(train, seed)[0]
    for workers in (0, 2):
        for found, labels in load(train, batches, workers, torch.device("cpu")):
            torch.testing.assert_close(found, expected[labels], rtol=0, atol=0)
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
    for row in (0, 49):
        alone = [train.__getitems__(Batch([row], [view]))[0] for view in (7, NUM_VIEWS + 7, 8)]
        assert torch.equal(alone[0], alone[1])
        assert not torch.equal(alone[0], alone[2])


def test_synthetic_rows_are_the_same_in_any_batch() -> None:
    data = build_data("synthetic:2000,30,3x8x10")
    assert (len(data.train), len(data.test), data.num_classes) == (2000, 200, 30)
    assert data.image_shape == (3, 8, 10)
    images, labels = all_rows(data.train)
    assert (images.shape, images.dtype) == ((2000, 3, 8, 10), torch.float32)
    assert labels.tolist() == [row % 30 for row in range(2000)]
    found, found_labels = data.train.__getitems__(Batch([1999, 3, 3], [5, 5, 6]))
    assert torch.equal(found, images[[1999, 3, 3]])
    assert found_labels.tolist() == [19, 3, 3]
    assert len({hashlib.sha256(image.numpy().tobytes()).digest() for image in images}) == 2000
    assert not torch.equal(all_rows(data.test)[0], images[:200])
    assert images.mean().item() == pytest.approx(0, abs=0.02)
    assert images.std().item() == pytest.approx(1, abs=0.02)
    # The windows of neighbours do not overlap.
    assert not {*images[0].flatten().tolist()} & {*images[1].flatten().tolist()}
    # The last row that has an image of its own, and the first that shares one.
    data = build_data("synthetic:2000000,1000,1x40")
    asked = [0, 2**20, 2**20 - 1, 2**19]
    first, shared, *others = data.train.__getitems__(Batch(asked, None))[0]
    assert torch.equal(shared, first)
    assert not any(torch.equal(other, first) for other in others)


def test_a_synthetic_set_is_cheap_to_send_to_a_worker() -> None:
    train = build_data("synthetic:1281167,1000,3x224x224").train
    sent = pickle.dumps(train)
    assert len(sent) < 5e6
    batch = Batch([7, 1281166], None)
    assert torch.equal(pickle.loads(sent).__getitems__(batch)[0], train.__getitems__(batch)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist",), f"data: got 'mnist'; expected {', '.join(DATA)}"),
        (("digits:8",), "data: got 'digits:8'; expected digits,"),
        (("npz",), "data: got 'npz'; expected digits,"),
        (
            ("cifar10",),
            "data_dir: got none; cifar10 takes the folder that holds cifar-10-python.ta",
        ),
        (("imagenet",), "data_dir: got none; imagenet takes the folder that holds train/ and val/"),
        (("digits", "here"), "data_dir: got 'here'; digits takes none"),
        (("digits", None, 8), "image_size: got 8; only folder and imagenet take it"),
        (("synthetic:10,3",), "data: got 'synthetic:10,3'; expected synthetic:N,K,CxHxW"),
        (("synthetic:10,3,4x0x2",), "data: got 'synthetic:10,3,4x0x2'; expected synthetic:N,K"),
        (("synthetic:10,3,4x",), "data: got 'synthetic:10,3,4x'; expected synthetic:N,K"),
        (("synthetic:2,3,1x4",), "data: got 'synthetic:2,3,1x4'; expected at least as many"),
        (
            ("cifar100", "nowhere"),
            "data_dir: found no cifar100 in nowhere; put cifar-100-python.tar.gz, its folder "
            "cifar-100-python, or cifar100.npz there",
        ),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_data(*arguments)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
