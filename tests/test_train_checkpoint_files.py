"""Checkpoints in files: told by their content; what is unpickled, what is named; damage."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import io
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from saved_weights import assert_read, assert_refused, build

TAKEN = "; expected tensors, plain values, NumPy scalars and arrays, and argparse.Namespace$"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "name", ["student_best", "last.ckpt", "w.pth.tar", "w.bin", "w.model", "w.npz", "w.safetensors"]
)
def test_no_name_matters_of_what_torch_saved(
    name: str, zipped: bool, tmp_path: Path, seed: int
) -> None:
    saved = build()
    content = {"model": saved.state_dict(), "lr": np.float64(0.1)}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert_read(tmp_path / name, saved)


@pytest.mark.parametrize("name", ["student_best", "w.pth", "w.safetensors"])
def test_no_name_matters_of_safetensors(name: str, tmp_path: Path, seed: int) -> None:
    saved = build()
    safetensors.torch.save_file(saved.state_dict(), tmp_path / name)
    assert_read(tmp_path / name, saved)


@pytest.mark.parametrize(
    "value",
    [
        np.float64(93.1),
        np.float32(1),
        np.int64(3),
        np.bool_(True),
        np.str_("a"),
        np.str_(""),
        np.bytes_(b"a"),
        np.complex64(1j),
        np.datetime64("2026-11-29"),
        np.dtype("f4"),
        np.dtype([("a", "f4")]),
        np.float32,
        np.zeros((2, 3)),
        np.asfortranarray(np.ones((2, 2))),
        np.zeros(0),
        np.array(["a", "bc"]),
        [np.float32(0.1), {"a": (np.int64(1),)}],
        argparse.Namespace(lr=np.float64(0.1), inner=argparse.Namespace(steps=[1])),
        collections.OrderedDict(a=collections.Counter("ab")),
        {"size": torch.Size([1]), "device": torch.device("cuda"), "dtype": torch.float16},
        [{1j}, {b"bytes"}],
        b"",
        2**100,
        None,
    ],
    ids=repr,
)
def test_what_may_be_beside_the_weights(value: Any, tmp_path: Path, seed: int) -> None:
    saved = build()
    torch.save({"state_dict": saved.state_dict(), "value": value}, tmp_path / "w.pth")
    assert_read(tmp_path / "w.pth", saved)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_scalars_of_either_numpy(core: str, tmp_path: Path, seed: int) -> None:
    saved = build()
    torch.save(
        {"model": saved.state_dict(), "best_acc": np.float64(93.1)},
        tmp_path / "w",
        _use_new_zipfile_serialization=False,
    )
    raw = (tmp_path / "w").read_bytes()
    for written in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        raw = raw.replace(written, f"numpy.{core}.multiarray".encode())
    assert f"cnumpy.{core}.multiarray\nscalar\n".encode() in raw
    (tmp_path / "w").write_bytes(raw)
    assert_read(tmp_path / "w", saved)


class Bomb:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


class Settings(dict):
    pass


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Bomb(os.system, "touch ran"), "(posix|nt).system"),
        (Bomb(eval, "open('ran', 'w')"), "builtins.eval"),
        (Bomb(subprocess.Popen, ["touch", "ran"]), "subprocess.Popen"),
        (Bomb(functools.partial, print), "functools.partial"),
        (Bomb(torch.load, "ran"), "torch.serialization.load"),
        (Bomb(np.load, "ran"), "numpy.*load"),
        (Bomb(bytes.fromhex, "00"), "builtins.getattr"),
        (Settings(lr=0.1), "test_train_checkpoint_files.Settings"),
        (datetime.datetime(2026, 11, 29), "datetime.datetime"),
        (collections.deque([1]), "collections.deque"),
        (Path("runs"), "pathlib.*Path"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (np.array([1, "a"], dtype=object), "numpy._core.multiarray._reconstruct of objects"),
        (np.zeros(2, [("a", "O")]), "numpy._core.multiarray._reconstruct of objects"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_unpickled_is_named(
    value: Any, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    content = {"model": build().state_dict(), "value": value}
    for zipped in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        assert_refused(path, f"holds {named}{TAKEN}")
    if not isinstance(value, np.ndarray):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            path.write_bytes(pickle.dumps({"value": value}, protocol))
            how = "copyreg._reconstructor|" if protocol < 2 else ""  # that calls the class
            assert_refused(path, f"holds .*(?:{how}{named}).*{TAKEN}")
    assert not Path("ran").exists()


def test_a_network_itself_is_not_unpickled(tmp_path: Path) -> None:
    torch.save(build(), tmp_path / "w.pth")
    assert_refused(tmp_path / "w.pth", f"holds ndfast.train.models.network.Network{TAKEN}")


def test_what_else_the_process_allows_is_not_unpickled_and_stays(tmp_path: Path) -> None:
    torch.save({"model": build().state_dict(), "value": Settings()}, tmp_path / "w.pth")
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([Settings, np.dtype]):
        assert_refused(tmp_path / "w.pth", "holds test_train_checkpoint_files.Settings;")
        assert {Settings, np.dtype} <= set(torch.serialization.get_safe_globals())
    assert set(torch.serialization.get_safe_globals()) == before


def script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)), file)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    return file.getvalue()


def saved_by_protocol_4() -> bytes:
    file = io.BytesIO()
    torch.save(build().state_dict(), file, pickle_protocol=4)
    return file.getvalue()


DAMAGED = "cannot be read as weights: it is damaged, or no checkpoint of torch.save or safetensors "


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: b"", DAMAGED + r"\(it is empty\)$"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "Git LFS"),
        (lambda: b"\xef\xbb\xbf\n<!DOCTYPE html>", "page of HTML or XML; expected a checkpoint"),
        (lambda: b'{"error": "not found"}', DAMAGED + r"\(it begins as neither does\)$"),
        (lambda: b"\x1f\x8b\x08" + bytes(40), DAMAGED + r"\(it begins as neither does\)$"),
        (saved_by_protocol_4, DAMAGED + r"\(its pickle's protocol is not 2\)$"),
        (script, "is a TorchScript program; expected a state dict$"),
        (npz, "is a zip file of something else; expected a checkpoint$"),
    ],
    ids=["empty", "lfs", "html", "json", "gzip", "protocol", "script", "npz"],
)
def test_files_of_other_kinds(make: Any, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(make())
    assert_refused(tmp_path / "w.pth", sentence)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pth")
    assert_refused(tmp_path / "w.pth", "is no regular file; expected a checkpoint$")


def test_flipped_bits_of_what_torch_saved(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "w.pth"
    weights = torch.arange(256, dtype=torch.uint8).repeat(20)
    torch.save({**build().state_dict(), "marked": weights}, path)
    whole = path.read_bytes()
    first = whole.index(bytes(range(256)))
    for at in torch.randint(first, first + 5000, (10,)).tolist():
        broken = bytearray(whole)
        broken[at] ^= 1 << (at % 8)
        path.write_bytes(broken)
        assert_refused(path, DAMAGED + r"\(the checksum of \S+ does not fit\)$")


def test_torch_may_leave_checksums_out(tmp_path: Path, seed: int) -> None:
    saved = build()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(saved.state_dict(), tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_read(tmp_path / "w.pth", saved)
