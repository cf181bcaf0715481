"""Images that EXIF turns are brought upright, and with them what their annotations are for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs Pillow")

from small_detection import edit
from test_train_detection_data import drawn, folder

from ndfast.train.data.batches import Batch
from ndfast.train.detection.coco import read_coco
from ndfast.train.detection.shapes import SIDE, draw
from ndfast.train.errors import ConfigError

__all__ = ["drawn", "folder"]  # fixtures


# By EXIF's orientation (EXIF 2.3, table of tag 0x0112): where the picture's row 0 and column 0 lie.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],
}


def store(file: Path, upright: np.ndarray, orientation: int, mode: str = "RGB") -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    stored.convert(mode).save(file, exif=exif)


@pytest.mark.parametrize(("suffix", "mode"), [("png", "RGB"), ("tif", "RGB"), ("tif", "L")])
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("height", [SIDE, 40])
def test_a_turned_image_is_brought_upright(
    folder: Path, height: int, orientation: int, suffix: str, mode: str
) -> None:
    file = folder / "train" / f"000000.{suffix}"
    pixels = draw(3, 0).pixels[:height]
    pixels = pixels[:, :, :1].repeat(3, axis=2) if mode == "L" else pixels
    store(file, pixels, orientation, mode)
    edit(folder, lambda content: content["images"][0].update(height=height, file_name=file.name))
    (image,), _ = read_coco(folder).train.__getitems__(Batch([0], None))
    assert ((image * 255).round().permute(1, 2, 0).numpy() == pixels).all()


def test_sizes_are_of_the_upright_image(folder: Path) -> None:
    file = folder / "train" / "000000.png"
    store(file, draw(3, 0).pixels[:40], 6)
    edit(folder, lambda content: content["images"][0].update(height=64, width=40))
    with pytest.raises(ConfigError) as raised:
        read_coco(folder).train.__getitems__(Batch([0], None))
    assert str(raised.value) == (
        f"data_dir: {file} is 64 pixels wide and 40 high; its annotations are for 40 and 64; they "
        "are taken for what EXIF's orientation turns upright"
    )


def test_broken_exif_data_turns_nothing(folder: Path) -> None:
    from PIL import Image

    file, pixels = folder / "train" / "000000.png", draw(3, 0).pixels
    Image.fromarray(pixels).save(file, exif=b"Exif\0\0 no TIFF header at all")
    (image,), _ = read_coco(folder).train.__getitems__(Batch([0], None))
    assert ((image * 255).round().permute(1, 2, 0).numpy() == pixels).all()
