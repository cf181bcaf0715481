"""Folders of images: what is found in them, how it is transformed, what is refused."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from whole_dataset import all_rows

pytest.importorskip("torchvision_ops", reason="needs torchvision")

from PIL import Image

from ndfast.train.data import build_data
from ndfast.train.data.batches import Batch, TrainingBatches, load
from ndfast.train.data.folders import read_image
from ndfast.train.errors import ConfigError

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(params=["timm", "torchvision"])
def pipeline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose transforms are used."""
    if request.param == "timm":
        pytest.importorskip("timm", reason="needs timm")
    else:
        monkeypatch.setitem(sys.modules, "timm", None)
        monkeypatch.setitem(sys.modules, "timm.data", None)
    return request.param


def write_image(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def folder(tmp_path: Path, seed: int) -> Path:
    """Two classes, of 4 and 3 images for training and one each for testing."""
    rng = np.random.default_rng(seed)
    for part, name, count in (
        ("train", "b", 3),
        ("train", "a", 4),
        ("val", "a", 1),
        ("val", "b", 1),
    ):
        for number in range(count):
            pixels = rng.integers(256, size=(20, 24, 3), dtype=np.uint8)
            write_image(tmp_path / part / name / f"{number}.png", pixels)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    return tmp_path


def test_classes_are_numbered_by_name(folder: Path, pipeline: str) -> None:
    data = build_data("folder", str(folder), 16)
    assert (len(data.train), len(data.test)) == (7, 2)
    assert (data.num_classes, data.image_shape) == (2, (3, 16, 16))
    for dataset, expected in ((data.train, [0] * 4 + [1] * 3), (data.test, [0, 1])):
        images, labels = all_rows(dataset)
        assert labels.tolist() == expected
        assert (images.shape, images.dtype) == ((len(expected), 3, 16, 16), torch.float32)
    assert build_data("folder", str(folder)).image_shape == (3, 224, 224)


@pytest.mark.parametrize(
    "hidden", [".ipynb_checkpoints", ".git", "@eaDir", "__MACOSX", "lost+found", "._a"]
)
@pytest.mark.parametrize("place", ["train", "val", "train/a"])
def test_what_is_hidden_is_no_class_and_no_image(
    hidden: str, place: str, folder: Path, tmp_path: Path
) -> None:
    before = build_data("folder", str(folder), 16)
    write_image(folder / place / hidden / "0.png", np.zeros((4, 4), np.uint8))
    write_image(folder / place / hidden / "within" / "0.png", np.zeros((4, 4), np.uint8))
    for file in (".DS_Store", "._0.png", ".0.png"):  # AppleDouble files have an image's suffix
        (folder / "train" / "a" / file).write_bytes(b"\0\5\x16\7")
    data = build_data("folder", str(folder), 16)
    assert (data.name, data.num_classes) == (before.name, 2)
    assert (len(data.train), len(data.test)) == (7, 2)
    all_rows(data.train)


def test_hidden_folders_above_do_not_matter(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    for part in ("train", "val"):
        (folder / part).rename(tmp_path / ".cache" / part)
    assert len(build_data("folder", str(tmp_path / ".cache"), 16).train) == 7


def test_a_class_of_hidden_images_alone_has_none(folder: Path) -> None:
    write_image(folder / "train" / "c" / ".0.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ConfigError, match=r"found no image in .*/train/c; each class takes"):
        build_data("folder", str(folder), 16)


def test_images_are_left_as_they_lie(folder: Path) -> None:
    """As torchvision's ImageFolder and timm, and so the published teachers, read them."""
    file = folder / "val" / "a" / "0.png"
    image, exif = Image.open(file), Image.Exif()
    exif[0x0112] = 6
    image.save(file, exif=exif)
    assert (np.asarray(read_image(str(file))) == np.asarray(image)).all()


def test_the_middle_is_evaluated(folder: Path, pipeline: str) -> None:
    # Resized to 32/28 of the side and cropped to the middle: an image of 32×40 is cropped alone.
    pixels = np.random.default_rng(0).integers(256, size=(32, 40, 3), dtype=np.uint8)
    write_image(folder / "val" / "a" / "0.png", pixels)
    images, _ = all_rows(build_data("folder", str(folder), 28).test)
    middle = torch.from_numpy(pixels[2:30, 6:34] / 255).float()
    torch.testing.assert_close(images[0], ((middle - MEAN) / STD).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_any_kind_of_image_becomes_rgb(mode: str, folder: Path) -> None:
    file = folder / "val" / "a" / "0.png"
    image = Image.open(file).convert("I" if mode == "I;16" else mode)
    image.convert(mode).save(file)
    assert all_rows(build_data("folder", str(folder), 16).test)[0].shape == (2, 3, 16, 16)


@pytest.mark.parametrize("kind", ["png", "tif", "big-endian.tif", "pgm"])
def test_of_grey_in_16_bits_the_high_8_are_taken(kind: str, tmp_path: Path) -> None:
    values = np.array([[0, 255, 256], [0x7FFF, 0xFE80, 0xFFFF]], np.uint16)
    file = tmp_path / f"image.{kind}"
    if kind == "pgm":
        file.write_bytes(b"P5 3 2 65535\n" + values.astype(">u2").tobytes())
    elif kind == "big-endian.tif":
        Image.frombytes("I;16B", (3, 2), values.astype(">u2").tobytes()).save(file)
    else:
        Image.fromarray(values).save(file)
    image = read_image(str(file))
    assert image.mode == "RGB"
    expected = np.array([[0, 0, 1], [0x7F, 0xFE, 0xFF]])
    assert (np.asarray(image) == expected[:, :, None]).all()


def test_training_images_are_cropped_and_flipped(folder: Path, pipeline: str) -> None:
    # Brightness rises to the right: a crop keeps that, a flip turns it round.
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 3 + 30, 64, axis=0)
    write_image(folder / "train" / "a" / "0.png", ramp.repeat(3, axis=2))
    train = build_data("folder", str(folder), 16).train
    images, _ = train.__getitems__(Batch([0] * 200, [*range(200)]))
    rises = images[:, 1, 8, 15] - images[:, 1, 8, 0]
    assert 60 < (rises > 0).sum() < 140
    assert (rises != 0).all()
    # Crops of 8 to 100 % of the area: sides of 0.28 to 1, of which the ramp shows as much.
    whole = (63 * 3 / 255) / 0.224
    assert rises.abs().min() < 0.5 * whole
    assert rises.abs().max() > 0.8 * whole


def test_colours_are_left_as_they_are(folder: Path, pipeline: str) -> None:
    pixels = np.full((20, 20, 3), (200, 100, 50), np.uint8)
    write_image(folder / "train" / "a" / "0.png", pixels)
    images, _ = build_data("folder", str(folder), 16).train.__getitems__(
        Batch([0] * 20, [*range(20)])
    )
    expected = (torch.tensor([200, 100, 50]) / 255 - MEAN) / STD
    torch.testing.assert_close(images, expected.reshape(1, 3, 1, 1).expand_as(images))


def test_the_views_alone_decide(folder: Path, pipeline: str, seed: int) -> None:
    train = build_data("folder", str(folder), 16).train
    asked = [*TrainingBatches(7, 2, seed, seed, 0, 1), Batch([0, 6], None)]
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = [train.__getitems__(batch) for batch in reversed(asked)][::-1]
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
    random.random(), np.random.random(), torch.rand(1)
    for workers in (0, 2):
        loaded = load(train, asked, workers, torch.device("cpu"))  # type: ignore[arg-type]
        torch.testing.assert_close([*map(tuple, loaded)], found, rtol=0, atol=0)
    (one, other), (one_view, other_view) = asked[0].indices, asked[0].views or ()
    swapped = train.__getitems__(Batch([other, one], [other_view, one_view]))[0]
    assert torch.equal(swapped.flip(0), found[0][0])
    assert not torch.equal(train.__getitems__(Batch([one], [other_view]))[0][0], found[0][0][0])


def test_whichever_generator_a_transform_draws_from_is_seeded(folder: Path) -> None:
    train = build_data("folder", str(folder), 16).train
    train._augment = lambda image: torch.tensor(  # type: ignore[attr-defined]
        [random.random(), np.random.random(), torch.rand(()).item()]
    )
    first, again, other = (
        train.__getitems__(Batch([0, 1], [view, 7]))[0].tolist() for view in (5, 5, 2**40)
    )
    assert first == again
    assert all(drawn != drawn_other for drawn, drawn_other in zip(first[0], other[0], strict=True))
    assert first[1] == other[1]


def test_the_generators_come_back_after_an_error(folder: Path) -> None:
    train = build_data("folder", str(folder), 16).train
    (folder / "train" / "a" / "1.png").unlink()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with pytest.raises(ConfigError, match=r"1\.png is no image that can be read \(FileNotFound"):
        train.__getitems__(Batch([0, 1], [3, 4]))
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("kept", [0, 60, 200])
def test_a_broken_image_is_named(kept: int, folder: Path) -> None:
    file = folder / "train" / "b" / "2.png"
    file.write_bytes(file.read_bytes()[:kept])
    train = build_data("folder", str(folder), 16).train
    for views in (None, [1, 2]):
        with pytest.raises(ConfigError) as raised:
            train.__getitems__(Batch([0, 6], views))
        assert str(raised.value).startswith(f"data_dir: {file} is no image that can be read (")
        assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_as_it_should(folder: Path, tmp_path: Path) -> None:
    def refused(kind: str = "folder") -> str:
        with pytest.raises(ConfigError) as raised:
            build_data(kind, str(folder), 16)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert refused("imagenet") == (
        f"data_dir: found 2 classes in {folder}/train; imagenet takes 1000, `--data folder` any "
        "number"
    )
    write_image(folder / "val" / "c" / "0.png", np.zeros((4, 4), np.uint8))
    assert refused() == (
        f"data_dir: {folder}/train and {folder}/val have other classes; only one of them has c"
    )
    (folder / "train" / "c").mkdir()
    assert (
        refused() == f"data_dir: found no image in {folder}/train/c; each class takes at least one"
    )
    (folder / "train").rename(folder / "elsewhere")
    missing = f"data_dir: found no train and val in {folder}; put both there, with a folder of "
    assert refused().startswith(missing)
    (folder / "train").mkdir()
    assert refused().startswith(f"data_dir: found no class in {folder}/train; put a folder of")
    (folder / "val").rename(folder / "away")
    assert refused().startswith(missing)


def test_the_test_folder_serves_where_there_is_no_val(folder: Path) -> None:
    (folder / "val").rename(folder / "test")
    assert len(build_data("folder", str(folder), 16).test) == 2
    write_image(folder / "val" / "a" / "0.png", np.zeros((4, 4), np.uint8))
    write_image(folder / "val" / "b" / "0.png", np.zeros((4, 4), np.uint8))
    write_image(folder / "val" / "b" / "1.png", np.zeros((4, 4), np.uint8))
    assert len(build_data("folder", str(folder), 16).test) == 3


def test_the_name_tells_other_data_apart(folder: Path) -> None:
    def name(size: int = 16) -> str:
        return build_data("folder", str(folder), size).name

    names = [name(), name(17)]
    write_image(folder / "train" / "a" / "9.png", np.zeros((4, 4), np.uint8))
    names.append(name())
    for part in ("train", "val"):
        (folder / part / "b").rename(folder / part / "c")
    names.append(name())
    assert len(set(names)) == 4
    assert name() == names[-1]


def test_imagenet_has_a_thousand_classes(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4), np.uint8)
    for part in ("train", "val"):
        for number in range(1000):
            write_image(tmp_path / part / f"n{number:08}" / "0.png", pixels)
    data = build_data("imagenet", str(tmp_path))
    assert (data.num_classes, data.image_shape) == (1000, (3, 224, 224))
    assert data.test.__getitems__(Batch([998], None))[1].tolist() == [998]
