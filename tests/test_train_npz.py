"""npz files: what is read from them, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from whole_dataset import all_rows

from ndfast.train.data import build_data
from ndfast.train.data.folders import read_image
from ndfast.train.errors import ConfigError


@pytest.mark.parametrize(
    ("shape", "image_shape", "augmented"),
    [
        ((20, 7, 9, 3), (3, 7, 9), True),
        ((20, 3, 7, 9), (3, 7, 9), True),
        ((20, 7, 9, 1), (1, 7, 9), False),
        ((20, 5, 7, 9), (5, 7, 9), False),
        ((20, 7, 9), (1, 7, 9), False),
        ((20, 11), (1, 11), False),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_npz_of_any_shape(
    shape: tuple[int, ...],
    image_shape: tuple[int, ...],
    augmented: bool,
    dtype: type,
    tmp_path: Path,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(256, size=shape).astype(dtype), np.arange(20) % 4
    file = tmp_path / "some.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:5], y_test=labels[:5])
    data = build_data(f"npz:{file}")
    assert (data.num_classes, data.image_shape) == (4, image_shape)
    channels_first = np.moveaxis(images, -1, 1) if shape[-1] in (1, 3) else images
    expected = channels_first.reshape(20, *image_shape).astype(np.float64)
    axes = (0, *range(2, expected.ndim))
    mean = expected.mean(axis=axes, keepdims=True)
    expected = (expected - mean) / expected.std(axis=axes, keepdims=True)
    found, _ = all_rows(data.train)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(all_rows(data.test)[0], expected[:5], rtol=0, atol=1e-5)
    assert torch.equal(all_rows(data.train, seed=seed)[0], found) != augmented


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((8, 32, 32, 4), 3),  # RGBA
        ((8, 32, 24, 4), 3),
        ((8, 32, 32, 2), 1),  # grey and alpha
        ((8, 4, 32, 32), None),  # channels first keep them all
        ((8, 2, 32, 32), None),
        ((8, 3, 4, 4), None),
        ((8, 64, 4, 4), None),
        ((8, 16, 8, 2), 1),
        ((8, 512, 2, 2), None),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_alpha_is_dropped(
    shape: tuple[int, ...], channels: int | None, dtype: type, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(256, size=shape).astype(dtype), np.arange(8) % 4
    file = tmp_path / "some.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = build_data(f"npz:{file}")
    expected = images if channels is None else np.moveaxis(images[..., :channels], -1, 1)
    assert data.image_shape == expected.shape[1:]
    kept = data.train.arrays.images  # type: ignore[attr-defined]
    assert (kept == expected).all()


def test_rgba_is_what_a_folder_of_images_gives(tmp_path: Path, seed: int) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="needs Pillow")
    images = np.random.default_rng(seed).integers(256, size=(8, 9, 7, 4), dtype=np.uint8)
    file = tmp_path / "some.npz"
    labels = np.arange(8) % 4
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    kept = build_data(f"npz:{file}").train.arrays.images  # type: ignore[attr-defined]
    for image, own in zip(images, kept, strict=True):
        image_module.fromarray(image).save(tmp_path / "one.png")
        read = np.asarray(read_image(str(tmp_path / "one.png")))
        assert (read.transpose(2, 0, 1) == own).all()


def test_a_constant_channel_is_zero(tmp_path: Path) -> None:
    images = np.full((4, 6), 7, np.uint8)
    file = tmp_path / "some.npz"
    np.savez(file, x_train=images, y_train=[0, 1, 0, 1], x_test=images, y_test=[0, 1, 0, 1])
    assert not all_rows(build_data(f"npz:{file}").train)[0].any()


GOOD = {
    "x_train": np.zeros((3, 4, 4), np.uint8),
    "y_train": np.array([0, 1, 2]),
    "x_test": np.zeros((2, 4, 4), np.uint8),
    "y_test": np.array([2, 0]),
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": np.zeros((3, 4, 4), np.int32)}, "images of int32; expected uint8 or floats"),
        ({"y_test": np.array([0.0, 1.0])}, "labels of float64; expected integers"),
        ({"y_train": np.array([0, 1])}, r"x_train and y_train: got the shapes \[3, 4, 4\] and \[2"),
        ({"x_test": np.zeros((0, 4, 4)), "y_test": np.array([], np.int64)}, r"\[0, 4, 4\]"),
        ({"x_test": np.zeros((2, 4, 5), np.uint8)}, "expected one shape"),
        ({"x_test": np.full((2, 4, 4), np.nan)}, "NaN or Inf"),
        ({"y_train": np.array([0, 1, 3])}, "from 0 to 3, and 3 classes"),
        ({"y_train": np.array([-1, 0, 1])}, "from -1 to 1, and 3 classes"),
        ({"y_test": np.array([2, 3])}, "from 2 to 3, and 3 classes"),
        ({"x_train": np.array([{}], dtype=object)}, "no npz file of the arrays .*pickle"),
    ],
)
def test_a_wrong_npz(changed: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    np.savez(file, **GOOD)
    assert build_data(f"npz:{file}").num_classes == 3
    np.savez(file, **(GOOD | changed))
    with pytest.raises(ConfigError, match=message):
        build_data(f"npz:{file}")


def test_an_npz_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    with pytest.raises(ConfigError, match=r"data: found no file .*some.npz"):
        build_data(f"npz:{file}")
    np.savez(file, x_train=GOOD["x_train"])
    with pytest.raises(ConfigError, match=r"no npz file of the arrays .*y_train"):
        build_data(f"npz:{file}")
    whole = file.read_bytes()
    for raw in (b"", b"text", whole[:100], pickle.dumps({})):
        file.write_bytes(raw)
        with pytest.raises(ConfigError, match=r"some.npz is no npz file of the arrays"):
            build_data(f"npz:{file}")
    with file.open("wb") as opened:
        np.save(opened, np.zeros(3))
    with pytest.raises(ConfigError, match=r"some.npz is no npz file of the arrays"):
        build_data(f"npz:{file}")


def test_the_name_tells_other_data_apart(tmp_path: Path) -> None:
    def name(**changed: np.ndarray) -> str:
        file = tmp_path / "some.npz"
        np.savez(file, **(GOOD | changed))
        return build_data(f"npz:{file}").name

    other_image = GOOD["x_train"].copy()
    other_image[1, 2, 3] = 1
    shape = {"x_train": np.zeros((3, 2, 8), np.uint8), "x_test": np.zeros((2, 2, 8), np.uint8)}
    names = [
        name(),
        name(y_train=np.array([0, 2, 1])),
        name(x_train=other_image),
        name(**shape),
    ]
    assert len(set(names)) == 4
    assert name() == names[0]
    (tmp_path / "some.npz").rename(tmp_path / "moved.npz")
    assert build_data(f"npz:{tmp_path / 'moved.npz'}").name == names[0]
