"""Folders of images, one folder a class: ImageNet and any other set on disk."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndfast.files import is_hidden
from ndfast.train.data import Data
from ndfast.train.data.batches import Batch
from ndfast.train.errors import ConfigError, import_package

_CROP = 0.875  # 224 of 256 pixels, as ImageNet is evaluated since AlexNet


class FolderDataset:
    """Images that are read from disk batch by batch."""

    num_views = None  # each its own

    def __init__(self, samples: list[tuple[str, int]], image_size: int) -> None:
        self.samples = samples
        self._augment, self._resize, package = _transforms(image_size)
        self.preprocessing = f"{image_size} pixels, transforms of {package} {version(package)}"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images float32 [n, 3, H, W], normalised as ImageNet's, and labels int64 [n].

        Raises:
            ConfigError: an image cannot be read.
        """
        files, labels = zip(*(self.samples[row] for row in batch.indices), strict=True)
        if batch.views is None:
            images = [self._resize(read_image(file)) for file in files]
        else:
            images = []
            with _global_generators() as seed_them:
                for file, view in zip(files, batch.views, strict=True):
                    seed_them(view)
                    images.append(self._augment(read_image(file)))
        return torch.stack(images), torch.tensor(labels)


def image_folder(kind: str, folder: str, image_size: int) -> Data:
    """A set of images in class folders; the classes are numbered by their names' order.

    Trained on crops of 8 to 100 % of the area, resized, and flipped; tested on the middle.

    Args:
        kind: "imagenet" for one that must have 1,000 classes, else "folder".
        folder: holds train/ and val/, or test/ where there is no val/.
        image_size: side in pixels.

    Raises:
        ConfigError: a folder is missing, a class has no image, or the two have other classes.
        ModuleNotFoundError: torchvision is not installed.
    """
    import_package("torchvision")
    root = Path(folder)
    found = [root / name for name in ("val", "test") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not found:
        raise ConfigError(
            f"data_dir: found no train and val in {root}; put both there, with a folder of images "
            "for each class"
        )
    train, train_classes = _list(root / "train")
    test, test_classes = _list(found[0])
    differing = sorted(set(train_classes) ^ set(test_classes))
    if differing:
        raise ConfigError(
            f"data_dir: {root / 'train'} and {found[0]} have other classes; only one of them has "
            f"{differing[0]}"
        )
    if kind == "imagenet" and len(train_classes) != 1000:
        raise ConfigError(
            f"data_dir: found {len(train_classes)} classes in {root / 'train'}; imagenet takes "
            "1000, `--data folder` any number"
        )
    counts = np.bincount([label for _, label in train]).tolist()
    described = repr((image_size, train_classes, counts))
    digest = hashlib.sha256(described.encode()).hexdigest()[:12]
    return Data(
        FolderDataset(train, image_size),
        FolderDataset(test, image_size),
        len(train_classes),
        (3, image_size, image_size),
        f"{kind} {digest}",
    )


def _list(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """The files with their labels, and the names of the classes; none that is hidden."""
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import is_image_file

    class VisibleImages(ImageFolder):
        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            names = sorted(
                entry.name
                for entry in os.scandir(directory)
                if entry.is_dir() and not is_hidden(entry.name)
            )
            if not names:
                raise FileNotFoundError(directory)
            return names, {name: label for label, name in enumerate(names)}

    def is_visible_image(file: str) -> bool:
        below = Path(file).relative_to(folder).parts
        return is_image_file(file) and not any(map(is_hidden, below))

    try:
        found = VisibleImages(str(folder), allow_empty=True, is_valid_file=is_visible_image)
    except FileNotFoundError as error:
        raise ConfigError(
            f"data_dir: found no class in {folder}; put a folder of images for each there"
        ) from error
    counts = np.bincount(found.targets, minlength=len(found.classes))
    if not counts.all():
        empty = folder / found.classes[int(counts.argmin())]
        raise ConfigError(f"data_dir: found no image in {empty}; each class takes at least one")
    return found.samples, found.classes


def _transforms(
    image_size: int,
) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor], str]:
    """From a PIL image to float32 [3, H, W], augmented and not; timm's where it is installed.

    And the name of the package that they are of.
    """
    try:
        from timm.data import create_transform
    except ModuleNotFoundError:
        return *_torchvision_transforms(image_size), "torchvision"
    augment = create_transform(
        image_size,
        is_training=True,
        color_jitter=None,  # type: ignore[arg-type]  # it leaves the jitter out
    )
    return augment, create_transform(image_size, crop_pct=_CROP), "timm"


def _torchvision_transforms(
    image_size: int,
) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    from torchvision import transforms

    to_tensor = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )
    augment = [transforms.RandomResizedCrop(image_size), transforms.RandomHorizontalFlip()]
    resize = [transforms.Resize(int(image_size / _CROP)), transforms.CenterCrop(image_size)]
    return transforms.Compose([*augment, to_tensor]), transforms.Compose([*resize, to_tensor])


def read_image(file: str, upright: bool = False) -> Any:
    """A file as a PIL image in RGB; of 16 bits a channel the high 8 are taken.

    Args:
        file: of any format that PIL reads.
        upright: turned as its EXIF orientation says; else it stays as it lies, as torchvision and
            timm train on it.

    Raises:
        ConfigError: it is no image that can be read.
    """
    from PIL import Image, ImageOps

    try:
        # Opened: of a path PIL would map the memory, and shuffle a grey TIFF that it turns.
        with open(file, "rb") as opened, Image.open(opened) as image:
            if upright:
                with suppress(Exception):  # broken EXIF data, of which the pixels know nothing
                    ImageOps.exif_transpose(image, in_place=True)
            return _eight_bits(image).convert("RGB")
    except Exception as error:  # a decoder raises whatever it stumbles over
        raise ConfigError(
            f"data_dir: {file} is no image that can be read ({type(error).__name__})"
        ) from error


def _eight_bits(image: Any) -> Any:
    """Grey of 16 bits by its high bytes: PIL takes those of colours itself and cuts grey at 255."""
    from PIL import Image

    # PGM's is read as I, and an older PIL reads PNG's so; other formats have 32 bits in that.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


@contextmanager
def _global_generators() -> Iterator[Callable[[int], None]]:
    """Gives what seeds those that transforms draw from, and leaves them as they were."""

    def seed_them(seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well

    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield seed_them
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
