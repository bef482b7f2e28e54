"""What holds for every data set of the table of contents, on tiny stand-ins for the real files."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from robustbench_sparse.data import DATASETS, DataError, Dataset, DatasetSpec, PreparedData

Write = Callable[[Path, int], DatasetSpec]  # puts files under a root; the seed changes an image


def write_idx(path: Path, values: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes((0, 0, 8, values.ndim)) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def write_mnist(folder: str) -> Write:
    def write(root: Path, seed: int) -> DatasetSpec:
        random = np.random.default_rng(seed)
        for part, count in (("train", 20), ("t10k", 10)):
            pixels = random.integers(0, 256, (count, 28, 28))
            write_idx(root / folder / "raw" / f"{part}-images-idx3-ubyte", pixels)
            write_idx(root / folder / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
        return DATASETS["mnist" if folder == "MNIST" else "fashion_mnist"]()

    return write


def write_cifar(key: str) -> Write:
    source = getattr(torchvision.datasets, key.upper())
    classes, labels = (10, "labels") if key == "cifar10" else (100, "fine_labels")

    def write(root: Path, seed: int) -> DatasetSpec:
        random = np.random.default_rng(seed)
        folder = root / source.base_folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, _ in [*source.train_list, *source.test_list]:
            pixels = random.integers(0, 256, (20, 3 * 32 * 32)).astype(np.uint8)
            entry = {"data": pixels, labels: [i % classes for i in range(20)]}
            (folder / name).write_bytes(pickle.dumps(entry))
        names = {source.meta["key"]: [f"class {i}" for i in range(classes)]}
        (folder / source.meta["filename"]).write_bytes(pickle.dumps(names))
        return DATASETS[key]()

    return write


def write_images(root: Path, seed: int) -> DatasetSpec:
    random = np.random.default_rng(seed)
    for part, count in (("train", 5), ("test", 3)):
        for label in ("cat", "dog", "eel"):
            folder = root / "pets" / part / label
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = random.integers(0, 256, (9, 9, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return DATASETS["image_folder"](path="pets")


STAND_INS: dict[str, Write] = {
    "digits": lambda root, seed: DATASETS["digits"](),
    "mnist": write_mnist("MNIST"),
    "fashion_mnist": write_mnist("FashionMNIST"),
    "cifar10": write_cifar("cifar10"),
    "cifar100": write_cifar("cifar100"),
    "image_folder": write_images,
}


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take the stand-ins, whose checksums are not the originals'."""
    for source in (torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100):
        monkeypatch.setattr(source, "train_list", [[name, None] for name, _ in source.train_list])
        monkeypatch.setattr(source, "test_list", [[name, None] for name, _ in source.test_list])
        monkeypatch.setattr(source, "meta", {**source.meta, "md5": None})


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    def load(key: str, seed: int = 0) -> Dataset:
        root = tmp_path / f"root {seed}"
        return STAND_INS[key](root, seed).load(root, tmp_path / "cache")

    return load


def test_every_data_set_has_a_stand_in() -> None:
    assert list(STAND_INS) == list(DATASETS)


@pytest.mark.parametrize("key", DATASETS)
class TestEveryDataset:
    def test_is_a_documented_frozen_keyword_only_dataclass(self, key: str) -> None:
        spec = DATASETS[key]
        assert issubclass(spec, DatasetSpec)
        assert spec.key == key
        assert spec.__doc__
        assert not spec.__doc__.startswith(f"{spec.__name__}("), "the signature that dataclass writes"
        assert spec.__dataclass_params__.frozen
        documents = "".join(base.__doc__ or "" for base in spec.__mro__)
        for field in dataclasses.fields(spec):
            assert field.kw_only
            assert f"{field.name}:" in documents
            assert field.default is not dataclasses.MISSING or (key, field.name) == ("image_folder", "path")

    def test_loads_square_uint8_images_of_all_classes(self, key: str, load: Callable[..., Dataset]) -> None:
        data = load(key)
        assert data.name == key
        assert data.label
        for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
            assert x.dtype == torch.uint8
            assert y.dtype == torch.int64
            assert x.shape == (len(y), data.channels, data.size, data.size)
            assert x.is_contiguous()
            assert x.max() > 200, "the range is 0..255"
        assert data.train_y.unique().tolist() == data.test_y.unique().tolist()
        assert len(set(data.classes)) == len(data.classes)

    def test_loads_the_same_again(self, key: str, load: Callable[..., Dataset]) -> None:
        one, again = load(key), load(key)
        assert one.fingerprint == again.fingerprint
        assert torch.equal(one.train_x, again.train_x)
        assert torch.equal(one.test_y, again.test_y)
        assert one.classes == again.classes

    def test_prepares(self, key: str, load: Callable[..., Dataset]) -> None:
        data = load(key)
        prepared = PreparedData(data, validation=3, test_limit=2)
        assert (prepared.count("val"), prepared.count("test")) == (3, 2)
        assert (prepared.channels, prepared.size, prepared.classes) == (
            *(data.channels, data.size),
            len(data.classes),
        )
        x, y = next(iter(prepared.batches(torch.Generator().manual_seed(0), 4)))
        assert x.shape == (4, data.channels, data.size, data.size)
        assert x.min() >= 0
        assert 0.5 < x.max() <= 1
        assert y.shape == (4,)


# The digits come with scikit-learn: their images are fixed, and they cannot be missing.
@pytest.mark.parametrize("key", [key for key in DATASETS if key != "digits"])
class TestEveryDatasetInFiles:
    def test_another_image_gives_another_fingerprint(self, key: str, load: Callable[..., Dataset]) -> None:
        assert load(key).fingerprint != load(key, seed=1).fingerprint

    def test_missing_data_is_one_line_that_says_where_it_was_looked_for(
        self, key: str, tmp_path: Path
    ) -> None:
        spec = DATASETS[key](**({"path": "pets.zip"} if key == "image_folder" else {}))
        for root in (tmp_path, tmp_path / "no such folder"):
            with pytest.raises(DataError) as caught:
                spec.load(root, tmp_path / "cache")
            message = str(caught.value)
            assert "\n" not in message
            assert str(root) in message
            assert "RBS_DATA" in message
            assert "data.path" in message if key == "image_folder" else "data.download: true" in message
