"""Sets in COCO's format that are broken: a sentence for each, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL", reason="needs Pillow")

from small_detection import edit

from ndfast.train.data.batches import Batch
from ndfast.train.detection.coco import read_coco
from ndfast.train.detection.shapes import write_shapes
from ndfast.train.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty drawn images to train on and ten to test on."""
    write_shapes(tmp_path, 40, 10, seed=3)
    return tmp_path


def refused(folder: Path) -> str:
    def read_all() -> None:
        train = read_coco(folder).train
        train.__getitems__(Batch([*range(len(train))], None))

    with pytest.raises(ConfigError) as raised:
        read_all()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda content: content.pop("images"), "KeyError: 'images'"),
        (lambda content: content.update(images=[]), "there is no image"),
        (lambda content: content.update(categories=[]), "there is no category"),
        (lambda content: content["images"].append(content["images"][3]), "2 of kind image have"),
        (lambda content: content["images"][0].pop("height"), "KeyError: 'height'"),
        (lambda content: content["annotations"][0].pop("bbox"), "KeyError: 'bbox'"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2, 3]), "not enough values"),
        (lambda content: content["annotations"][0].update(bbox="none"), "could not convert"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2, 10**400, 3]), "too large"),
        (
            lambda content: content["annotations"][4].update(bbox=[1, 2, float("nan"), 3]),
            "annotation 5 has NaN or infinity",
        ),
        (lambda content: content["annotations"][0].update(area=None), "NoneType"),
        (
            lambda content: content["annotations"][3].update(category_id=77),
            "annotation 4 has the category_id 77, which the file does not list",
        ),
        (
            lambda content: content["annotations"][0].update(image_id=77_777),
            "annotation 1 has the image_id 77777, which the file does not list",
        ),
    ],
)
@pytest.mark.parametrize("part", ["train", "val"])
def test_annotations_in_another_format(
    folder: Path, part: str, change: Callable[[Any], object], why: str
) -> None:
    edit(folder, change, part)
    path = folder / "annotations" / f"instances_{part}.json"
    message = refused(folder)
    assert message.startswith(f"data_dir: {path} is not in COCO's format (")
    assert why in message


def test_images_that_do_not_fit_the_annotations(folder: Path) -> None:
    annotations = folder / "annotations" / "instances_val.json"
    image = folder / "val" / "000042.png"
    image.unlink()
    expected = f"data_dir: {annotations} names {image}, not to be found"
    assert refused(folder) == expected  # before anything is trained
    (folder / "val" / "000045.png").unlink()
    assert refused(folder) == expected.replace(",", " and 1 more,")
    write_shapes(folder, 40, 10, seed=3)
    edit(folder, lambda content: content["images"][7].update(width=32))
    assert refused(folder) == (
        f"data_dir: {folder / 'train' / '000007.png'} is 64 pixels wide and 64 high; its "
        "annotations are for 32 and 64"
    )


def test_a_folder_that_is_not_as_it_should(folder: Path) -> None:
    path = folder / "annotations" / "instances_train.json"
    file = folder / "train" / "000007.png"
    file.write_bytes(file.read_bytes()[:50])
    assert refused(folder).startswith(f"data_dir: {file} is no image that can be read (")
    edit(folder, lambda content: content.update(annotations=[]), "val")
    assert "instances_val.json; expected at least one" in refused(folder)
    beyond = {"image_id": 0, "category_id": 1, "bbox": [70, 70, 9, 9]}
    edit(folder, lambda content: content.update(annotations=[beyond]))
    assert "instances_train.json; expected at least one" in refused(folder)
    write_shapes(folder, 40, 10, seed=3)
    edit(folder, lambda content: content["categories"][0].update(name="disc"), "val")
    assert "the test set disc, square" in refused(folder)
    path.write_text("[1, 2")
    assert refused(folder).startswith(f"data_dir: {path} is not in COCO's format (JSONDecodeError")
    path.unlink()
    assert refused(folder) == (
        f"data_dir: found none in {folder / 'annotations'}; expected one instances_train.json "
        f"there, and the images in {folder / 'train'}"
    )
