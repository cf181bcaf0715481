"""The data sets that a run can name, each as a `Data`."""

from __future__ import annotations

from typing import NamedTuple

from ndfast.files import expand_home
from ndfast.train.data.batches import BatchDataset
from ndfast.train.errors import ConfigError

DATA = {
    "digits": "8×8 images that ship with scikit-learn",
    "mnist1d": "signals of 40 samples, generated",
    "cifar10": "cifar-10-python.tar.gz, its folder cifar-10-batches-py, or cifar10.npz",
    "cifar100": "cifar-100-python.tar.gz, its folder cifar-100-python, or cifar100.npz",
    "npz:FILE": "x_train, y_train, x_test and y_test in one file of numpy's",
    "folder": "train/ and val/ (or test/), each with a folder of images for each class",
    "imagenet": "train/ and val/ (or test/), each with a folder of images for 1,000 classes",
    "synthetic:N,K,CxHxW": "N images (or CxL signals) of noise in K classes, and N/10 to test on",
}
"""How a data set is named; and what it is, or what is in the folder of one on disk."""

_KINDS = [spelling.partition(":")[0] for spelling in DATA]


class Data(NamedTuple):
    """What a run trains and tests on.

    Args:
        train: its images are augmented where a batch has views.
        test: of the same shape and classes.
        num_classes: K; each has a training image.
        image_shape: (C, H, W), or (C, L) for signals.
        name: tells other data apart, so that class means can name theirs. For what is on disk it
            ends in a hash of the shape and of the labels and some images, or, for folders, of the
            names of the classes and their counts.
    """

    train: BatchDataset
    test: BatchDataset
    num_classes: int
    image_shape: tuple[int, ...]
    name: str


def build_data(name: str, folder: str | None = None, image_size: int | None = None) -> Data:
    """The data set of a name, without any use of the network.

    Args:
        name: see `DATA`.
        folder: where the data set is, for those that are in a folder on disk.
        image_size: side of the images in pixels, for those of a folder of images; by default 224.

    Raises:
        ConfigError: the name is unknown, an argument is missing or not taken, or what is on disk
            is not what it takes.
        ModuleNotFoundError: the package that a data set comes from is not installed.
    """
    kind, colon, detail = name.partition(":")
    folder = None if folder is None else str(expand_home(folder))
    takes_detail = kind in ("npz", "synthetic")
    if kind not in _KINDS or bool(colon) != takes_detail:
        raise ConfigError(f"data: got {name!r}; expected {', '.join(DATA)}")
    has_images = kind in ("folder", "imagenet")
    on_disk = has_images or kind in ("cifar10", "cifar100")
    if on_disk and folder is None:
        raise ConfigError(f"data_dir: got none; {kind} takes the folder that holds {DATA[kind]}")
    if not on_disk and folder is not None:
        raise ConfigError(f"data_dir: got {folder!r}; {kind} takes none")
    if not has_images and image_size is not None:
        raise ConfigError(f"image_size: got {image_size}; only folder and imagenet take it")

    from ndfast.train.data import arrays, folders, synthetic

    if folder is not None and has_images:
        return folders.image_folder(kind, folder, image_size or 224)
    if folder is not None:
        return arrays.cifar(kind, folder)
    if kind == "npz":
        return arrays.npz(str(expand_home(detail)))
    if kind == "synthetic":
        return synthetic.synthetic(detail)
    return arrays.digits() if kind == "digits" else arrays.mnist1d()
