"""Files that hold no class means, by accident or by intent: each is refused, and by its reason."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from ndfast import class_means_files
from ndfast.class_means_files import (
    load_class_means,
    load_class_means_metadata,
    save_class_means,
)

WITH_METADATA = (".npz", ".safetensors")
SUFFIXES = (".json", *WITH_METADATA)
MEANS = torch.tensor([[0.5, -1.0, 2.0], [3.0, 4.0, 5.0]])
NAN = torch.tensor([[0.5, 1.0], [2.0, torch.nan]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read: Expecting value"),
        ('{"0": [1.0]', "cannot be read: Expecting"),
        ("\xff", "cannot be read: "),
        ("[[1.0, 2.0]]", "got list; expected a dict"),
        ("{}", "holds no class"),
        ('{"0": [1.0], "0": [2.0]}', "key '0' occurs twice"),
        ('{"-1": [1.0]}', "key '-1' is no class index"),
        ('{"0": [1.0], "01": [1.0]}', "key '01' is no class index"),
        ('{" 0": [1.0]}', "key ' 0' is no class index"),
        ('{"0\\n": [1.0]}', r"key '0\\n' is no class index"),
        ('{"1.0": [1.0]}', "key '1.0' is no class index"),
        ('{"٣": [1.0]}', "key '٣' is no class index"),
        ('{"1٣": [1.0]}', "key '1٣' is no class index"),
        ('{"cat": [1.0]}', "key 'cat' is no class index"),
        ('{"' + "9" * 5000 + '": [1.0]}', "is no class index"),
        ('{"0": [1.0], "2": [1.0]}', "got 2 classes up to 2 without 1"),
        ('{"1": [1.0]}', "got 1 classes up to 1 without 0"),
        ('{"0": [1.0, 2.0], "1": [1.0]}', "class 1 holds 1 values; expected 2"),
        ('{"0": []}', "class 0 holds 0 values; expected 1 or more"),
        ('{"0": 1.0}', "class 0 holds float; expected a list"),
        ('{"0": {"0": 1.0}}', "class 0 holds dict; expected a list"),
        ('{"0": "12"}', "class 0 holds str; expected a list"),
        ('{"0": [1.0, true]}', "class 0, column 1 is True; expected a number"),
        ('{"0": [null, 1.0]}', "class 0, column 0 is None; expected a number"),
        ('{"0": [1.0, 2.0, "3"]}', "class 0, column 2 is '3'; expected a number"),
        ('{"0": [[1.0]]}', r"class 0, column 0 is \[1.0\]; expected a number"),
        ('{"1": [1.0, NaN], "0": [1.0, 1.0]}', "class 1, column 1 is nan; expected a finite"),
        ('{"0": [-Infinity]}', "class 0, column 0 is -inf"),
        ('{"0": [1e400]}', "class 0, column 0 is inf"),
        ('{"0": [1e39]}', r"class 0, column 0 is 1e\+39; expected a finite float32"),
        ('{"0": [1' + "0" * 400 + "]}", "class 0, column 0 is inf"),
        ('{"0": ' + "[" * 100_000, "recursion"),
        ('{"0": [1.0], "' + "0" * 5000 + '": [1.0]}', r"key '0+\.\.\.0+' is no class index"),
        ('{"0": [' + "[0]," * 5000 + "0]}", r"class 0, column 0 is \[0.0\]"),
        ('{"0": ["' + "1" * 5000 + '"]}', r"column 0 is '1+\.\.\.1+'"),
        ('{"' + "1" * 5000 + '": 0, "' + "1" * 5000 + '": 0}', r"key '1+\.\.\.1+' occurs twice"),
    ],
)
def test_bad_json(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="latin-1" if text == "\xff" else "utf-8")
    for load in (load_class_means, load_class_means_metadata):
        with pytest.raises(ValueError, match=message) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value)) < len(str(path)) + 150


def write_by_other_means(path: Path, array: np.ndarray, name: str = "class_means") -> None:
    if path.suffix == ".npz":
        np.savez(path, **{name: array})
    else:
        safetensors.numpy.save_file({name: array}, path)


@pytest.mark.parametrize("suffix", WITH_METADATA)
@pytest.mark.parametrize(
    ("array", "name", "message"),
    [
        (np.ones((2, 3), np.float32), "class_means", "SHA-256 does not fit"),
        (np.ones((2, 3), np.float32), "centers", r"no array class_means, but \['centers'"),
        (np.ones((2, 3), np.int64), "class_means", r"got int64 \[2, 3\]"),
        (np.ones((2, 3), np.float16), "class_means", r"got float16 \[2, 3\]"),
        (np.ones(3, np.float32), "class_means", r"got float32 \[3\]"),
        (np.ones((0, 3), np.float32), "class_means", r"got float32 \[0, 3\]"),
    ],
)
def test_files_of_other_makers(
    tmp_path: Path, suffix: str, array: np.ndarray, name: str, message: str
) -> None:
    path = tmp_path / f"means{suffix}"
    write_by_other_means(path, array, name)
    with pytest.raises(ValueError, match=message):
        load_class_means(path)


@pytest.mark.parametrize("suffix", WITH_METADATA)
def test_sealed_means_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"means{suffix}"
    with monkeypatch.context() as careless:
        careless.setattr(class_means_files, "check_finite", lambda *arguments: None)
        save_class_means(path, NAN)
    with pytest.raises(ValueError, match="class_means: class 1, column 1 is nan"):
        load_class_means(path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "harmed",)

    pickle.loads(pickle.dumps(Harm()))
    (tmp_path / "harmed").unlink()  # it would be there

    path = tmp_path / "means.npz"
    np.savez(path, class_means=np.array([Harm()], dtype=object), metadata=np.array("{}"))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_class_means(path)
    path.write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match="cannot be read"):
        load_class_means(path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PT", ".pkl"])
def test_pickles_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"means{suffix}"
    torch.save(MEANS, path)
    for act in (load_class_means, lambda path: save_class_means(path, MEANS)):
        with pytest.raises(ValueError, match=r"can run code .* weights_only=True"):
            act(path)


@pytest.mark.parametrize("name", ["means", "means.npy", "means.json.gz"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    for act in (load_class_means, lambda path: save_class_means(path, MEANS)):
        with pytest.raises(ValueError, match=r"expected \.json, \.npz, \.safetensors"):
            act(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_class_means(tmp_path / "means.json")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_size_cap(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"means{suffix}"
    save_class_means(path, MEANS)
    size = path.stat().st_size
    assert torch.equal(load_class_means(path, max_bytes=size), MEANS)
    for load in (load_class_means, load_class_means_metadata):
        with pytest.raises(ValueError, match=f"has {size} bytes, more than max_bytes={size - 1}"):
            load(path, max_bytes=size - 1)


def test_size_cap_of_what_a_zip_unpacks_to(tmp_path: Path) -> None:
    path = tmp_path / "means.npz"
    np.savez_compressed(path, class_means=np.zeros((1000, 1000), np.float32))
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"unpacks to 40001\d\d bytes, more than max_bytes=10000"):
        load_class_means(path, max_bytes=10_000)


def test_size_cap_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "means.json"
    path.touch()
    os.truncate(path, 2 << 30)  # blocks that were never written take no room on the disk
    with pytest.raises(ValueError, match="has 2147483648 bytes, more than max_bytes=1073741824"):
        load_class_means(path)


def test_a_hundred_megabytes_of_json(tmp_path: Path) -> None:
    D = 5000
    row = f"[{', '.join(['0.12345678901234567'] * D)}]"
    rows = [f'"{k}": {row}' for k in range(1000)]
    path = tmp_path / "means.json"
    path.write_text("{" + ", ".join(rows) + f', "1000": {row[:-22]}]' + "}")
    assert path.stat().st_size > 100_000_000
    with pytest.raises(ValueError, match="class 1000 holds 4999 values; expected 5000"):
        load_class_means(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_regular_file(tmp_path: Path, suffix: str) -> None:
    pipe, folder = tmp_path / f"pipe{suffix}", tmp_path / f"folder{suffix}"
    os.mkfifo(pipe)  # to open it is to wait for a writer
    folder.mkdir()
    device, link = tmp_path / f"device{suffix}", tmp_path / f"link{suffix}"
    device.symlink_to("/dev/zero")  # which never ends
    link.symlink_to(pipe)
    for path in (pipe, folder, device, link):
        with pytest.raises(ValueError, match="is no regular file"):
            load_class_means(path)
    good = tmp_path / f"means{suffix}"
    save_class_means(good, MEANS)
    link.unlink()
    link.symlink_to(good)
    assert torch.equal(load_class_means(link), MEANS)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(OSError, match="symbolic links"):
        load_class_means(link)
