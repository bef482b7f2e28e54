"""Data sets against their sources, and what is said when files are missing or damaged."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from robustbench_sparse.data import DATASETS, DataError, Dataset
from robustbench_sparse.data.base import data_root
from robustbench_sparse.data.digits import Digits
from robustbench_sparse.data.torchvision_sets import CIFAR10, MNIST
from robustbench_sparse.foundation.files import cache_folder
from tests.helpers.picture_files import Files, write_folder

# Where data is looked for ------------------------------------------------------------------------------


def test_folders_come_from_argument_environment_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RBS_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("RBS_CACHE", str(tmp_path / "c"))
    assert (data_root(tmp_path), cache_folder(tmp_path)) == (tmp_path, tmp_path)
    assert (data_root(None), cache_folder(None)) == (tmp_path / "d", tmp_path / "c")
    monkeypatch.delenv("RBS_DATA")
    monkeypatch.delenv("RBS_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root(None) == Path.cwd() / "data"
    assert cache_folder(None) == tmp_path / ".cache" / "robustbench_sparse"


# Dataset -----------------------------------------------------------------------------------------------


def tiny(**changes: Any) -> Dataset:
    x = torch.arange(4 * 2 * 3 * 3, dtype=torch.uint8).view(4, 2, 3, 3)
    fields: dict[str, Any] = {
        **{"name": "tiny", "label": "Tiny", "train_x": x, "train_y": torch.tensor([0, 1, 0, 1])},
        **{"test_x": x[:2], "test_y": torch.tensor([1, 0]), "classes": ("a", "b")},
    }
    return Dataset(**{**fields, **changes})


def test_fingerprint_is_that_of_the_contents() -> None:
    data = tiny()
    assert len(data.fingerprint) == 16
    assert int(data.fingerprint, 16) > 0
    # Stored in results: a change of the recipe has to be seen.
    assert data.fingerprint == tiny(name="other", label="Other").fingerprint == "ad86544abb03e301"
    changed = data.train_x.clone()
    changed[3, 1, 2, 2] += 1
    others = [
        tiny(train_x=changed),
        tiny(train_y=torch.tensor([0, 1, 1, 1])),
        tiny(test_x=data.test_x.flip(0)),
        tiny(test_y=torch.tensor([0, 1])),
        tiny(classes=("a", "c")),
        tiny(test_x=data.train_x, test_y=data.train_y, train_x=data.test_x, train_y=data.test_y),
    ]
    assert len({data.fingerprint, *(d.fingerprint for d in others)}) == 7


def test_fingerprint_sees_values_not_memory() -> None:
    data = tiny()
    strided = data.train_x.contiguous(memory_format=torch.channels_last)
    assert tiny(train_x=strided).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"train_x": torch.zeros(4, 2, 3, 3)}, "train_x"),
        ({"test_x": torch.zeros(2, 2, 3, 4, dtype=torch.uint8)}, "test_x"),
        ({"test_x": torch.zeros(2, 1, 3, 3, dtype=torch.uint8)}, "test_x"),
        ({"test_x": torch.zeros(0, 2, 3, 3, dtype=torch.uint8), "test_y": torch.zeros(0).long()}, "test_x"),
        ({"test_y": torch.tensor([1])}, "test_y"),
        ({"train_y": torch.tensor([0, 1, 2, 0])}, "train_y"),
        ({"train_y": torch.tensor([0, 1, -1, 0])}, "train_y"),
        ({"classes": ("a",)}, "classes"),
    ],
)
def test_dataset_rejects(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        tiny(**changes)


# Digits ------------------------------------------------------------------------------------------------


def test_digits_split_every_class_and_keep_every_image() -> None:
    data, source = Digits().load(), load_digits()
    assert (len(data.train_y), len(data.test_y)) == (1347, 450)
    counts = np.bincount(source.target)
    assert data.test_y.bincount().tolist() == [round(0.25 * n) for n in counts]
    assert (data.train_y.bincount() + data.test_y.bincount()).tolist() == counts.tolist()
    # Read back with its own rule, 0..255 gives 0..16, and each of the 1797 images is there once.
    values = torch.cat([data.train_x, data.test_x]).double() * 16 / 255
    assert (values - values.round()).abs().max() < 16 / 255 / 2 + 1e-9
    mine = sorted(tuple(row) for row in values.round().int().flatten(1).tolist())
    assert mine == sorted(tuple(row) for row in source.images.astype(int).reshape(1797, 64).tolist())


def test_digits_are_always_the_same() -> None:
    assert Digits().load().fingerprint == "d230884ca7fb63d4"


# torchvision's data sets ---------------------------------------------------------------------------------


def idx(*shape: int, value: int = 0, extra: int = 0) -> bytes:
    header = bytes((0, 0, 8, len(shape))) + b"".join(n.to_bytes(4, "big") for n in shape)
    return header + bytes([value]) * (int(np.prod(shape)) + extra)


def mnist_files(**changes: bytes) -> Files:
    files = {
        "train-images-idx3-ubyte": idx(6, 28, 28),
        "train-labels-idx1-ubyte": idx(6),
        "t10k-images-idx3-ubyte": idx(2, 28, 28),
        "t10k-labels-idx1-ubyte": idx(2),
    }
    return {
        f"MNIST/raw/{name}": changes.get(name.split("-idx")[0].replace("-", "_"), c)
        for name, c in files.items()
    }


def mnist_error(root: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        MNIST(**settings).load(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, mnist_files())
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    message = mnist_error(tmp_path)
    assert message.startswith(f"MNIST not found under {tmp_path} (--data-root or RBS_DATA): ")
    assert "t10k-labels-idx1-ubyte is missing; set `data.download: true`" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"train_images": idx(6, 28, 28)[:-1]},
            "train-images-idx3-ubyte: damaged, expected 4720 bytes, got 4719",
        ),
        ({"train_images": idx(6, 28, 28, extra=1)}, "train-images-idx3-ubyte: damaged, expected 4720 bytes"),
        ({"t10k_labels": b""}, "t10k-labels-idx1-ubyte: damaged, no IDX header"),
        ({"t10k_labels": b"\x1f\x8b" + bytes(8)}, "t10k-labels-idx1-ubyte: damaged, no IDX header"),
        ({"train_labels": idx(5)}, "holds 6 train images but 5 labels"),
        ({"train_labels": idx(6, value=10)}, "not as expected: train_y: expected 0..9, got (10, 10)"),
        ({"t10k_images": idx(2, 20, 20)}, "not as expected: test_x: expected images like train_x"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, changes: Files, expected: str) -> None:
    write_folder(tmp_path, mnist_files(**changes))
    message = mnist_error(tmp_path)
    assert expected in message
    assert str(tmp_path) in message


def test_only_the_files_that_were_verified_are_read(tmp_path: Path) -> None:
    write_folder(tmp_path, mnist_files())
    expected = MNIST().load(tmp_path).fingerprint
    # What old versions of torchvision have left, and new ones read first.
    (tmp_path / "MNIST/processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save(
            (torch.ones(6, 28, 28, dtype=torch.uint8), torch.zeros(6)), tmp_path / "MNIST/processed" / name
        )
    assert MNIST().load(tmp_path).fingerprint == expected


def test_a_file_larger_than_any_real_one_is_not_read(tmp_path: Path) -> None:
    count = (1 << 30) // 784 + 1
    write_folder(tmp_path, mnist_files())
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28))
    os.truncate(path, 16 + count * 784)  # a hole in the file: it takes no space
    assert f"{path}: expected at most 1073741824 bytes, got {16 + count * 784}" in mnist_error(tmp_path)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, mnist_files())

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", "train-images-idx3-ubyte")

    monkeypatch.setattr(Path, "open", refused)  # root may read anything
    message = mnist_error(tmp_path)
    assert message.startswith(f"MNIST under {tmp_path} cannot be read: ")
    assert "Permission denied: 'train-images-idx3-ubyte'" in message


def test_files_at_hand_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("went to the network"))
    write_folder(tmp_path, mnist_files())
    assert MNIST(download=True).load(tmp_path).train_x.shape == (6, 1, 28, 28)


def test_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    message = mnist_error(tmp_path, download=True)
    assert message.startswith(f"MNIST: download to {tmp_path} failed: ")
    assert "no route to host" in message


def test_foreign_cifar_pickles_are_not_opened(tmp_path: Path) -> None:
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
    # A pickle that would end this process.
    write_folder(tmp_path, {f"cifar-10-batches-py/{name}": b"cos\n_exit\n(I3\ntR." for name in names})
    with pytest.raises(DataError, match=r"data_batch_1: damaged, its MD5 is not c99cafc1") as caught:
        CIFAR10().load(tmp_path)
    assert str(tmp_path) in str(caught.value)


# The real data sets --------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("key", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)]
)
def test_real_idx_files(data_root: Path, key: str, mean: float, std: float) -> None:
    data = DATASETS[key]().load(data_root)
    assert data.train_x.shape == (60_000, 1, 28, 28)
    assert data.test_x.shape == (10_000, 1, 28, 28)
    x = data.train_x.double() / 255
    assert (round(x.mean().item(), 4), round(x.std().item(), 4)) == (mean, std)
    counts = data.test_y.bincount()
    assert counts.tolist() == (
        [1000] * 10 if key == "fashion_mnist" else [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    )


@pytest.mark.data
def test_real_mnist_is_bit_identical_to_the_original(data_root: Path) -> None:
    pixels = MNIST().load(data_root).train_x
    digest = hashlib.md5(idx(60_000, 28, 28)[:16] + pixels.numpy().tobytes(), usedforsecurity=False)
    assert digest.hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
